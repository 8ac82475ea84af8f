"""Which fields a request may have, route by route, beside those it must have.

A field stands in one of three tables, or is `STEPS`. `plain(path)`: whoever may ask at all may send it. `RAW`: it
reaches into the engine, past what a prompt and its sampling can do, or to other requests; it takes the scope
`raw-fields`. `INSTEAD`: engines take it and ignore it, so that the answer would be another than the one asked for;
nobody may send it. What stands nowhere is unknown. Lists are those of vLLM 0.32 and of OpenAI's and Anthropic's
clients; the tests compare.
"""

from collections.abc import Mapping

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"
SCORE = "/v1/score"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
MODERATIONS = "/v1/moderations"

# How much an answer may have: the name that is used where none is given comes first.
TOKEN_LIMITS: Mapping[str, tuple[str, ...]] = {
    CHAT: ("max_tokens", "max_completion_tokens"),
    TEXT: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
}
SALTED = frozenset({CHAT, TEXT, RESPONSES, MESSAGES, EMBEDDINGS, RERANK, SCORE})
# What the engine reads as the prompt, and of that what may hold images, audio or video.
PROMPTS = frozenset(
    """messages system instructions input prompt query queries documents items text_1 text_2 data_1 data_2 tokens tools
    previous_input_messages""".split()
)
PROMPTED = frozenset({CHAT, RESPONSES})
"""Where the field `prompt` names a stored one, for a step to lay."""
STEPS = "penstock"
"""What a request is to pass before the engine, chosen by the caller: it takes the scope `steps`."""
STEPPED = frozenset({CHAT, TEXT, RESPONSES, MESSAGES})
# Where several prompts or inputs may stand, each of which is work of its own for the engine.
BATCHES: Mapping[str, tuple[str, ...]] = {
    TEXT: ("prompt", "prompt_embeds"),
    EMBEDDINGS: ("input",),
    RERANK: ("query", "documents"),
    SCORE: ("data_1", "data_2", "documents", "items", "queries", "text_1", "text_2"),
    MODERATIONS: ("input",),
}
WITH_MEDIA = PROMPTS - {"instructions", "prompt", "tokens", "tools"}

_SAMPLING = """frequency_penalty ignore_eos include_stop_str_in_output logit_bias min_p presence_penalty
    repetition_penalty seed skip_special_tokens stop stop_token_ids stream stream_options structured_outputs
    temperature top_k top_p user watermarking"""
_GENERATION = f"""{_SAMPLING} n add_special_tokens allowed_token_ids bad_words echo length_penalty logprob_token_ids
    logprobs max_tokens min_tokens prompt_logprobs response_format return_tokens_as_token_ids
    spaces_between_special_tokens stream_interval thinking_token_budget truncate_prompt_tokens truncation_side
    use_beam_search"""
_CIRCUMSTANCES = """metadata prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier
    service_tier store"""
_TEMPLATE = "add_generation_prompt add_special_tokens chat_template_kwargs continue_final_message"
_POOLING = "padding truncate_prompt_tokens truncation_side use_activation user"
_SCORING = f"{_POOLING} chat_template_kwargs instruction max_tokens_per_doc max_tokens_per_query"
_ANTHROPIC = """betas billing_policy cache_control chat_template_kwargs compaction context_management messages
    output_config speed system thinking tool_choice tools user_profile_id workspace_id"""

_FIELDS: Mapping[str, str] = {
    CHAT: f"""messages {_GENERATION} {_CIRCUMSTANCES} {_TEMPLATE} documents include_reasoning max_completion_tokens
        modalities parallel_tool_calls prediction prompt reasoning_effort tool_choice tools top_logprobs verbosity""",
    TEXT: f"prompt {_GENERATION} best_of suffix",
    RESPONSES: f"""input {_SAMPLING} {_CIRCUMSTANCES} chat_template_kwargs context_management include
        include_reasoning instructions max_output_tokens max_tool_calls parallel_tool_calls prompt reasoning text
        tool_choice tools top_logprobs truncation""",
    MESSAGES: f"""{_ANTHROPIC} diagnostics fallback_credit_token inference_geo max_tokens metadata service_tier
        stop_sequences stream temperature top_k top_p watermarking""",
    COUNT_TOKENS: _ANTHROPIC,
    EMBEDDINGS: f"input messages {_POOLING} {_TEMPLATE} dimensions embed_dtype encoding_format endianness",
    RERANK: f"query documents {_SCORING} return_documents top_n",
    SCORE: f"data_1 data_2 documents items queries text_1 text_2 {_SCORING}",
    TOKENIZE: f"prompt messages {_TEMPLATE} return_token_strs tools",
    DETOKENIZE: "tokens",
    MODERATIONS: "input",
}
_PLAIN: Mapping[str, frozenset[str]] = {path: frozenset({"model", *names.split()}) for path, names in _FIELDS.items()}

# vLLM's, then SGLang's and TensorRT-LLM's, which are refused also where unknown fields pass.
RAW: Mapping[str, str] = {
    "cache_salt": "it decides with whom the prefix cache is shared",
    "chat_template": "it is a program that the engine runs",
    "ec_transfer_params": "it tells the engine where to read from",
    "enable_response_messages": "it shows the prompt as the engine has rendered it",
    "kv_cache_report_mode": "it changes what the engine publishes about its cache",
    "kv_transfer_params": "it tells the engine where to read from",
    "logits_processors": "it names code that the engine loads",
    "media_io_kwargs": "it changes how the engine reads media",
    "mm_payload": "it changes what the engine keeps of media",
    "mm_processor_kwargs": "it changes how much work media are",
    "previous_input_messages": "it goes past the chat template",
    "previous_response_id": "answers are not stored for each tenant: send the conversation itself",
    "priority": "it goes past the queue",
    "prompt_embeds": "it is a serialized tensor that the engine unpacks",
    "repetition_detection": "it makes the engine's scheduler search each answer",
    "request_id": "it names the request inside the engine: the header x-request-id is for that",
    "return_mm_kwargs": "it changes what the engine keeps of media",
    "return_prompt_text": "it shows the prompt as the engine has rendered it",
    "return_token_ids": "it shows the prompt as the engine has rendered it",
    "return_token_offsets": "it shows the prompt as the engine has rendered it",
    "routed_experts_prompt_start": "it makes the engine return what it computed inside",
    "session_id": "it names a session inside the engine: the header x-session-id is for that",
    "vllm_xargs": "it is passed to the engine's extensions",
    "bootstrap_host": "it tells the engine where to read from",
    "bootstrap_port": "it tells the engine where to read from",
    "bootstrap_room": "it tells the engine where to read from",
    "custom_logit_processor": "it is code that the engine runs",
    "custom_params": "it is passed to code in the engine",
    "disaggregated_params": "it tells the engine where to read from",
    "extra_key": "it decides with whom the prefix cache is shared",
    "input_embeds": "it goes past the chat template",
    "lora_path": "it names a file that the engine loads",
    "lora_request": "it names a file that the engine loads",
    "return_hidden_states": "it makes the engine return what it computed inside",
    "rid": "it names the request inside the engine: the header x-request-id is for that",
    "session_params": "it names a session inside the engine: the header x-session-id is for that",
}

_STRUCTURED = "use structured_outputs: {{{}}}, or response_format"
INSTEAD: Mapping[str, str] = {
    "access_programs": "no engine here knows it",
    "audio": "answers here are text: use modalities: [text]",
    "background": "answers are not stored here: wait for the answer, or stream it",
    "background_options": "answers are not stored here: wait for the answer, or stream it",
    "container": "no code runs here: offer tools of your own",
    "conversation": "conversations are not stored here: send the whole one as input",
    "fallbacks": "the gateway's configuration says which model stands in for another",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "guided_choice": _STRUCTURED.format("choice: [...]"),
    "guided_decoding_backend": "the engine chooses it",
    "guided_grammar": _STRUCTURED.format("grammar: ..."),
    "guided_json": _STRUCTURED.format("json: ..."),
    "guided_regex": _STRUCTURED.format("regex: ..."),
    "guided_whitespace_pattern": _STRUCTURED.format("whitespace_pattern: ..."),
    "image": "answers here are text",
    "mcp_servers": "no engine here calls other servers: offer tools of your own",
    "moderation": "no engine here moderates: ask a model that does",
    "thread": "conversations are not stored here: send the whole one as messages",
    "web_search_options": "no engine here searches the web: offer a tool of your own",
}

# What a chat template may be told; what else it is told could be anything that some template takes.
TEMPLATE_KWARGS = frozenset(
    """add_vision_id clear_thinking enable_thinking instruction preserve_thinking reasoning_effort thinking
    thinking_budget""".split()
)

PATHS = tuple(_PLAIN)


def plain(path: str) -> frozenset[str]:
    """The fields of a route that need no more than leave to ask."""
    return _PLAIN[path]


def known(path: str) -> frozenset[str]:
    """All that has a meaning there, also where it is refused."""
    return plain(path) | RAW.keys() | INSTEAD.keys() | ({STEPS} if path in STEPPED else frozenset())
