"""Secrets of nobody's, drawn by the formats that providers document, and what looks like secrets and is none.

Made of alphabets and lengths, not of the rules of guards/secrets.toml, so that it can say what those miss.
"""

import base64
import hashlib
import json
import string
import uuid
from collections.abc import Callable, Mapping
from random import Random

UPPER, LOWER, DIGITS = string.ascii_uppercase, string.ascii_lowercase, string.digits
BASE62 = string.ascii_letters + DIGITS
BASE64 = BASE62 + "+/"
URLSAFE = BASE62 + "-_"
HEX = "0123456789abcdef"


def drawn(random: Random, alphabet: str, length: int) -> str:
    return "".join(random.choices(alphabet, k=length))


def jwt(random: Random) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")

    claims = {
        "sub": drawn(random, DIGITS, 10),
        "name": drawn(random, LOWER, 8),
        "iat": random.randrange(10**9, 2 * 10**9),
    }
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.{drawn(random, URLSAFE, 43)}"


def pem(random: Random, name: str = "RSA ") -> str:
    lines = "\n".join(drawn(random, BASE64, 64) for _ in range(random.randint(3, 25)))
    return f"-----BEGIN {name}PRIVATE KEY-----\n{lines}\n{drawn(random, BASE64, 40)}==\n-----END {name}PRIVATE KEY-----"


MADE: Mapping[str, Callable[[Random], str]] = {
    "AWS access key": lambda r: r.choice(["AKIA", "ASIA"]) + drawn(r, UPPER + "234567", 16),
    "AWS secret key": lambda r: "aws_secret_access_key = " + drawn(r, BASE64, 40),
    "GitHub token": lambda r: r.choice(["ghp_", "gho_", "ghu_", "ghs_", "ghr_"]) + drawn(r, BASE62, 36),
    "GitHub fine-grained": lambda r: f"github_pat_{drawn(r, BASE62, 22)}_{drawn(r, BASE62, 59)}",
    "GitLab token": lambda r: "glpat-" + drawn(r, URLSAFE, 20),
    "OpenAI project key": lambda r: f"sk-proj-{drawn(r, URLSAFE, 74)}T3BlbkFJ{drawn(r, URLSAFE, 74)}",
    "OpenAI key": lambda r: f"sk-{drawn(r, BASE62, 20)}T3BlbkFJ{drawn(r, BASE62, 20)}",
    "Anthropic key": lambda r: f"sk-ant-api03-{drawn(r, URLSAFE, 93)}AA",
    "Google API key": lambda r: "AIza" + drawn(r, URLSAFE, 35),
    "Google OAuth secret": lambda r: "GOCSPX-" + drawn(r, URLSAFE, 28),
    "Google OAuth token": lambda r: "ya29." + drawn(r, URLSAFE, 160),
    "Slack bot token": lambda r: f"xoxb-{drawn(r, DIGITS, 12)}-{drawn(r, DIGITS, 13)}-{drawn(r, BASE62, 24)}",
    "Slack app token": lambda r: f"xapp-1-A{drawn(r, UPPER, 10)}-{drawn(r, DIGITS, 13)}-{drawn(r, HEX, 64)}",
    "Slack webhook": lambda r: "https://hooks.slack.com/services/"
    + "/".join(("T" + drawn(r, UPPER, 10), "B" + drawn(r, UPPER, 10), drawn(r, BASE62, 24))),
    "Stripe key": lambda r: r.choice(["sk_live_", "rk_live_", "sk_test_"]) + drawn(r, BASE62, r.choice([24, 99])),
    "Twilio key": lambda r: "SK" + drawn(r, HEX, 32),
    "SendGrid key": lambda r: f"SG.{drawn(r, URLSAFE, 22)}.{drawn(r, URLSAFE, 43)}",
    "Mailgun key": lambda r: "key-" + drawn(r, HEX, 32),
    "Mailchimp key": lambda r: f"{drawn(r, HEX, 32)}-us{r.randint(1, 21)}",
    "npm token": lambda r: "npm_" + drawn(r, BASE62, 36),
    "PyPI token": lambda r: "pypi-AgEIcHlwaS5vcmc" + drawn(r, URLSAFE, 150),
    "Hugging Face token": lambda r: "hf_" + drawn(r, string.ascii_letters, 34),
    "DigitalOcean token": lambda r: "dop_v1_" + drawn(r, HEX, 64),
    "Shopify token": lambda r: "shpat_" + drawn(r, HEX, 32),
    "Square token": lambda r: "sq0atp-" + drawn(r, URLSAFE, 22),
    "Telegram bot token": lambda r: f"{drawn(r, '123456789', 10)}:AA{drawn(r, URLSAFE, 33)}",
    "Discord bot token": lambda r: f"M{drawn(r, BASE62, 25)}.{drawn(r, URLSAFE, 6)}.{drawn(r, BASE62, 38)}",
    "Azure storage key": lambda r: f"AccountName=data;AccountKey={drawn(r, BASE64, 86)}==;EndpointSuffix=core",
    "Azure client secret": lambda r: f"{drawn(r, BASE62, 3)}8Q~{drawn(r, BASE62 + '._-', 33)}{drawn(r, BASE62, 1)}",
    "JWT": jwt,
    "private key": pem,
    "private key, encrypted": lambda r: pem(r).replace(
        "KEY-----\n", f"KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,{drawn(r, 'ABCDEF', 32)}\n\n", 1
    ),
    "private key in JSON": lambda r: json.dumps({"private_key": pem(r, "")}),
    "OpenSSH key": lambda r: pem(r, "OPENSSH "),
    "password in a URL": lambda r: f"postgresql://app:{drawn(r, BASE62, 14)}@db.internal:5432/app",
    "Databricks token": lambda r: "dapi" + drawn(r, HEX, 32),
    "Vault token": lambda r: "hvs." + drawn(r, URLSAFE, 90),
    "Terraform token": lambda r: f"{drawn(r, BASE62, 14)}.atlasv1.{drawn(r, URLSAFE, 67)}",
    "New Relic key": lambda r: "NRAK-" + drawn(r, UPPER + DIGITS, 27),
    "Grafana token": lambda r: f"glsa_{drawn(r, BASE62, 32)}_{drawn(r, HEX, 8)}",
    "Linear key": lambda r: "lin_api_" + drawn(r, BASE62, 40),
    "Notion token": lambda r: "ntn_" + drawn(r, BASE62, 46),
    "Postman key": lambda r: f"PMAK-{drawn(r, HEX, 24)}-{drawn(r, HEX, 34)}",
    "Docker token": lambda r: "dckr_pat_" + drawn(r, URLSAFE, 27),
    "Groq key": lambda r: "gsk_" + drawn(r, BASE62, 52),
    "Replicate token": lambda r: "r8_" + drawn(r, BASE62, 37),
    "Atlassian token": lambda r: "ATATT3" + drawn(r, URLSAFE + "=", 186),
    "Airtable token": lambda r: f"pat{drawn(r, BASE62, 14)}.{drawn(r, HEX, 64)}",
    "password in a variable": lambda r: f'DB_PASSWORD="{drawn(r, BASE62 + "_-.", 22)}"',
    "key in a header": lambda r: f"X-Api-Key: {drawn(r, BASE62, 32)}",
    "bearer token": lambda r: f"Authorization: Bearer {drawn(r, BASE62, 40)}",
}  # fmt: skip


def integrity(random: Random) -> str:
    return base64.b64encode(hashlib.sha512(random.randbytes(9)).digest()).decode()


NEGATIVES: Mapping[str, Callable[[Random], str]] = {
    "UUID": lambda r: f"request {uuid.UUID(int=r.getrandbits(128), version=4)} took 3 ms",
    "SHA-1": lambda r: f"commit {drawn(r, HEX, 40)}",
    "SHA-256": lambda r: f"sha256:{drawn(r, HEX, 64)}  model.safetensors",
    "MD5": lambda r: f"{drawn(r, HEX, 32)}  notes.txt",
    "npm integrity": lambda r: f'"integrity": "sha512-{integrity(r)}"',
    "base64 of prose": lambda r: base64.b64encode(
        " ".join(r.choices("the river carries water to a turbine and the gate holds it back".split(), k=20)).encode()
    ).decode(),
    "data URI": lambda r: f"data:image/png;base64,{base64.b64encode(r.randbytes(120)).decode()}",
    "numbers": lambda r: f"order {drawn(r, DIGITS, 12)} of {r.randint(2000, 2030)}-{r.randint(10, 12)}-17",
    "names that begin alike": lambda r: r.choice(
        [
            "sk-learn-compatible pipelines, task-proj-management and risk-ant-hills",
            "npm_config_registry and npm_package_dependencies_version_number_major",
            "hf_transfer and HF_HUB_ENABLE_HF_TRANSFER in huggingface_hub",
            "the key-value store and its secret_manager_client_library",
            "AKIATOLA and AIzaSy are how some keys begin",
            "glpat-tokens, xoxb-tokens and ghp_tokens are kinds of tokens",
        ]
    ),
    "placeholders": lambda r: r.choice(
        [
            "OPENAI_API_KEY=sk-proj-xxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "password: ${DATABASE_PASSWORD_FROM_VAULT}",
            "postgresql://user:password@localhost/db",
            "api_key = os.environ['SERVICE_API_KEY_PRODUCTION']",
            "Authorization: Bearer <your-token-goes-here>",
            "AKIAIOSFODNN7EXAMPLE",
        ]
    ),
    "code": lambda r: f"const accessTokenExpiry = getConfig('auth.access_token.expiry') ?? {r.randint(60, 3600)};",
    "public key": lambda r: f"-----BEGIN PUBLIC KEY-----\n{drawn(r, BASE64, 64)}\n-----END PUBLIC KEY-----",
}  # fmt: skip
