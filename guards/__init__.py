"""What must not be said or asked: guards, found in one table by name, around a `Chat`, on every route alike."""

from collections.abc import Mapping

from guards.classifier import Classifier
from guards.grounding import Grounding
from guards.guard import Guard
from guards.judge import Judge
from guards.outside import Http
from guards.places import Pii, Presidio, Secrets, Terms
from guards.schema import Schema
from guards.signals import Injection, Language, Size

GUARDS: Mapping[str, type[Guard]] = {
    "pii": Pii,
    "secrets": Secrets,
    "presidio": Presidio,
    "injection": Injection,
    "terms": Terms,
    "size": Size,
    "language": Language,
    "classifier": Classifier,
    "schema": Schema,
    "grounding": Grounding,
    "judge": Judge,
    "http": Http,
}
