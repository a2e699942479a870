"""Small HTML pages that verbs write: one file, nothing beside it, readable on a phone."""

import html
from pathlib import Path

from encyclo.picture import Picture

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1f2430}"
    "h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse}"
    "td,th{padding:.25rem .8rem;border-bottom:1px solid #dfe3e8;text-align:left;vertical-align:top}"
    "svg,img{max-width:100%;height:auto}figure{margin:1rem 0}figcaption{color:#5b6472;font-size:.9rem}"
)


def page(title: str, body: str) -> str:
    """A whole HTML document; `title` is escaped, `body` is markup."""
    name = html.escape(title)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{name}</title><style>{_STYLE}</style></head><body><h1>{name}</h1>{body}</body></html>\n"
    )


def figure(shown: Picture) -> str:
    """A picture with its caption, as markup that needs no other file."""
    import base64

    if shown.kind == "svg":
        text = shown.content.decode()
        inner = text[text.index("<svg") :]
    elif shown.kind == "wav":
        data = base64.b64encode(shown.content).decode()
        inner = f"<audio controls preload='none' src='data:audio/wav;base64,{data}'></audio>"
    else:
        data = base64.b64encode(shown.content).decode()
        inner = f"<img alt='' src='data:image/{shown.kind};base64,{data}'>"
    return f"<figure>{inner}<figcaption>{html.escape(shown.caption)}</figcaption></figure>"


def table(rows: list[dict[str, object]]) -> str:
    """Rows with equal keys as markup, everything escaped."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    lines = ["".join(f"<td>{html.escape(_shown(value))}</td>" for value in row.values()) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def write(path: Path, text: str) -> Path:
    """Write a page; the file appears whole or not at all."""
    from encyclo.data.atomic import write_bytes

    write_bytes(text.encode(), path)
    return path


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
