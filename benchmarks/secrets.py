"""How many formats of secrets are removed, and what harmless lines lose something.

    python -m benchmarks.secrets            a line for each format that is missed, the recall, the false alarms

Each format is drawn anew eight times, as it stands in logs and pages, from what its maker documents and not from the
rules that look for it. Harmless are the project's own pages and source, the documentation of Python's modules, and the
observations of episodes on it; a line is a false alarm if anything but an address of e-mail is taken out of it.
"""

from __future__ import annotations

import base64
import importlib
import random
import re
import string
from collections.abc import Iterator
from pathlib import Path

import click

import internalize
from internalize.config.redact import RedactConfig
from internalize.experience.redact import Redactor

SEED, DRAWS = 7, 8
_LETTERS = {
    "a": string.ascii_letters + string.digits,  # alphanumeric
    "l": string.ascii_lowercase + string.digits,
    "U": string.ascii_uppercase + string.digits,
    "h": "0123456789abcdef",
    "d": string.digits,
    "w": string.ascii_letters + string.digits + "_-",
    "b": string.ascii_letters + string.digits + "+/",
}
# {h32} stands for 32 characters of the kind h; what is between < and > is the secret, else all that is drawn.
FORMATS = {
    "AWS access key": "AKIA{U16}",
    "AWS temporary key": "ASIA{U16}",
    "AWS secret key": "aws_secret_access_key = <{b40}>",
    "AWS session token": "AWS_SESSION_TOKEN=<{b200}>",
    "Google API key": "AIza{w35}",
    "Google OAuth client secret": "GOCSPX-{w28}",
    "Google OAuth access token": "ya29.{w60}",
    "Google service account": '"private_key": "<-----BEGIN PRIVATE KEY-----\\n{b64}\\n{b64}\\n-----END PRIVATE KEY-----\\n>"',
    "Azure client secret": "client_secret=<{a3}8Q~{a34}>",
    "Azure storage key": "AccountKey=<{b86}==>;EndpointSuffix=core.windows.net",
    "Azure shared access signature": "?sv=2022-11-02&sp=r&sig=<{b42}%3D>",
    "Azure DevOps token": "AZURE_DEVOPS_EXT_PAT: token=<{l52}>",
    "GitHub token": "ghp_{a36}",
    "GitHub fine-grained token": "github_pat_{a22}_{a59}",
    "GitHub app token": "ghs_{a36}",
    "GitHub refresh token": "ghr_{a36}",
    "GitLab token": "glpat-{w20}",
    "GitLab runner token": "glrt-{w20}",
    "GitLab deploy token": "gldt-{w20}",
    "Bitbucket app password": "ATBB{a32}",
    "Atlassian API token": "ATATT3xFfGF0{w180}",
    "PyPI": "pypi-AgEIcHlwaS5vcmc{w70}",
    "npm": "npm_{a36}",
    "npm legacy": "//registry.npmjs.org/:_authToken=<{h8}-{h4}-{h4}-{h4}-{h12}>",
    "RubyGems": "rubygems_{h48}",
    "NuGet": "oy2{l43}",
    "crates.io": "CARGO_REGISTRY_TOKEN=<cio{a32}>",
    "Docker Hub token": "dckr_pat_{w27}",
    "Docker config": '"auths": {"registry.example": {"auth": "<{B}>"}}',
    "Stripe secret key": "sk_live_{a24}",
    "Stripe test key": "sk_test_{a24}",
    "Stripe restricted key": "rk_live_{a24}",
    "Stripe webhook secret": "whsec_{a32}",
    "Square": "sq0atp-{w22}",
    "PayPal": "PAYPAL_CLIENT_SECRET=<E{w79}>",
    "Shopify": "shpat_{h32}",
    "SendGrid": "SG.{w22}.{w43}",
    "Mailgun": "key-{h32}",
    "Mailchimp": "{h32}-us12",
    "Postmark": "X-Postmark-Server-Token: <{h8}-{h4}-{h4}-{h4}-{h12}>",
    "Twilio API key": "SK{h32}",
    "Twilio auth token": "TWILIO_AUTH_TOKEN=<{h32}>",
    "Slack bot token": "xoxb-{d12}-{d12}-{a24}",
    "Slack user token": "xoxp-{d12}-{d12}-{d12}-{h32}",
    "Slack app token": "xapp-1-A{U10}-{d13}-{h64}",
    "Slack webhook": "https://hooks.slack.com/services/<T{U8}/B{U8}/{a24}>",
    "Discord bot token": "M{a25}.{a6}.{w38}",
    "Discord webhook": "https://discord.com/api/webhooks/{d18}/<{w68}>",
    "Telegram bot token": "{d10}:AA{w33}",
    "Teams webhook": "https://x.webhook.office.com/webhookb2/<{h8}-{h4}-{h4}-{h4}-{h12}@{h8}-{h4}-{h4}-{h4}-{h12}"
    "/IncomingWebhook/{h32}/{h8}-{h4}-{h4}-{h4}-{h12}>",
    "OpenAI": "sk-{a48}",
    "OpenAI project key": "sk-proj-{w40}T3BlbkFJ{w40}",
    "Anthropic": "sk-ant-api03-{w93}AA",
    "OpenRouter": "sk-or-v1-{h64}",
    "Hugging Face": "hf_{a34}",
    "Groq": "gsk_{a52}",
    "xAI": "xai-{a80}",
    "Perplexity": "pplx-{a48}",
    "Replicate": "r8_{a37}",
    "NVIDIA": "nvapi-{w64}",
    "Mistral": "MISTRAL_API_KEY={a32}",
    "Cohere": "CO_API_KEY: <{a40}>",
    "Tavily": "tvly-{a32}",
    "LangSmith": "lsv2_pt_{h32}_{h10}",
    "Weights & Biases": "WANDB_API_KEY={h40}",
    "Pinecone": "pcsk_{a6}_{a63}",
    "Databricks": "dapi{h32}",
    "Snowflake": "SNOWFLAKE_PASSWORD='<{a12}>'",
    "HashiCorp Vault": "hvs.{w92}",
    "Vault batch token": "hvb.{w140}",
    "Terraform Cloud": "{a14}.atlasv1.{w64}",
    "DigitalOcean": "dop_v1_{h64}",
    "Heroku": "HEROKU_API_KEY=<{h8}-{h4}-{h4}-{h4}-{h12}>",
    "Fly.io": "FlyV1 fm2_{b120}",
    "Netlify": "NETLIFY_AUTH_TOKEN=<nfp_{a36}>",
    "Vercel": "VERCEL_TOKEN=<{a24}>",
    "Supabase": "sbp_{h40}",
    "PlanetScale": "pscale_pw_{w43}",
    "Doppler": "dp.pt.{a43}",
    "Pulumi": "pul-{h40}",
    "Cloudflare": "CLOUDFLARE_API_TOKEN=<{w40}>",
    "Fastly": "FASTLY_API_TOKEN=<{w32}>",
    "New Relic": "NRAK-{U27}",
    "Datadog": "DD_API_KEY=<{h32}>",
    "Sentry": "sntrys_{b60}_{b43}",
    "Grafana": "glsa_{a32}_{h8}",
    "PagerDuty": "PAGERDUTY_API_KEY=<{w20}>",
    "Linear": "lin_api_{a40}",
    "Notion": "ntn_{d11}{a35}",
    "Airtable": "pat{a14}.{h64}",
    "Figma": "figd_{w40}",
    "Dropbox": "sl.{w140}",
    "Mapbox": "sk.eyJ1{a80}.{w22}",
    "Algolia": "ALGOLIA_ADMIN_API_KEY={h32}",
    "Okta": "OKTA_API_TOKEN=<00{w40}>",
    "1Password service account": "ops_eyJ{b260}",
    "age": "AGE-SECRET-KEY-1{Q58}",
    "SSH key": "<-----BEGIN OPENSSH PRIVATE KEY-----\n{b70}\n{b70}\n-----END OPENSSH PRIVATE KEY----->",
    "PGP key": "<-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{b64}\n={b4}\n-----END PGP PRIVATE KEY BLOCK----->",
    "JSON Web Token": "eyJhbGciOiJIUzI1NiJ9.eyJ{w40}.{w43}",
    "bearer token": "Authorization: Bearer <{w40}>",
    "basic login": "Authorization: Basic <{B}>",
    "curl -u": "curl -u admin:<{a14}> https://host/api",
    "curl header": "curl -H 'X-Api-Key: <{a32}>' https://host",
    "redis password": "redis://:<{a16}>@10.0.0.5:6379/0",
    "database address": "postgres://app:<{a16}>@db.example:5432/app",
    "MongoDB address": "mongodb+srv://root:<{a16}>@cluster0.example.net",
    "password": "password = <{a10}>",
    "quoted password": "DB_PASSWORD: '<{a6} {a6}>'",
    "passphrase": "passphrase: <correct horse battery {l8}>",
    "password option": "mysqldump --user root --password <{a12}> db",
    "token of an address": "https://api.example.com/v1/items?token=<{a24}>",
    "access token of an address": "https://api.example.com/v1?access_token=<{a24}>&x=1",
    "JSON": '{"user": "me", "api_key": "<{a20}>"}',
    "escaped JSON": '{"body": "{\\"password\\": \\"<{a12}>\\"}"}',
    "cookie": "Cookie: sessionid=<{l32}>; csrftoken={l32}",
    "set cookie": "Set-Cookie: session=<{w64}>; Path=/; HttpOnly",
    "YAML": "  secret_key: <{a32}>",
    "export": "export GITLAB_TOKEN=<{w26}>",
    "Kubernetes": "  token: <{b60}>",
}


def drawn(template: str, draw: random.Random) -> tuple[str, str]:
    """A text of the format, and the secret in it."""

    def fill(found: re.Match[str]) -> str:
        kind, count = found[1], int(found[2] or 0)
        if kind == "B":
            return base64.b64encode(f"admin:{''.join(draw.choices(_LETTERS['a'], k=14))}".encode()).decode()
        letters = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" if kind == "Q" else _LETTERS[kind]
        return "".join(draw.choices(letters, k=count))

    text = re.sub(r"\{([a-zA-Z])(\d*)\}", fill, template)
    marked = re.search(r"<(.*)>", text, re.DOTALL) if "<" in template else None
    return (text[: marked.start()] + marked[1] + text[marked.end() :], marked[1]) if marked else (text, text)


def missed(redactor: Redactor) -> dict[str, list[str]]:
    """By format: the draws of which eight characters of the secret in a row are left."""
    draw, found = random.Random(SEED), dict[str, list[str]]()
    for name, template in FORMATS.items():
        for _ in range(DRAWS):
            text, secret = drawn(template, draw)
            left = redactor.clean(f"2026-11-30 10:00 INFO {text} ok\n")
            core = secret.rstrip("=").split("; ")[0].split("=")[-1].strip()  # of a pair, its value
            if any(core[i : i + 8] in left for i in range(max(1, len(core) - 7))):
                found.setdefault(name, []).append(left.strip())
    return found


def harmless() -> Iterator[str]:
    """Lines without secrets."""
    root = Path(internalize.__file__).parent.parent
    for file in sorted(
        [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("internalize/**/*.py"), *root.glob("recipes/*")]
    ):
        if file.is_file():
            yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
    for name in _MODULES:
        module = importlib.import_module(name)
        for part in (module, *(getattr(module, one) for one in dir(module) if not one.startswith("_"))):
            yield from str(getattr(part, "__doc__", "") or "").splitlines()
            for inner in vars(part).values() if isinstance(part, type) else ():
                yield from str(getattr(inner, "__doc__", "") or "").splitlines()


_MODULES = (
    "argparse", "asyncio", "base64", "collections", "configparser", "csv", "ctypes", "datetime", "decimal", "difflib",
    "email.message", "ftplib", "functools", "getpass", "hashlib", "hmac", "http.client", "http.cookies", "imaplib",
    "itertools", "json", "logging", "mailbox", "multiprocessing", "netrc", "numpy", "os", "pathlib", "pickle", "poplib",
    "random", "re", "secrets", "shutil", "smtplib", "socket", "sqlite3", "ssl", "statistics", "string", "subprocess",
    "tempfile", "threading", "tokenize", "unittest", "urllib.parse", "urllib.request", "uuid", "xml.etree.ElementTree",
    "zipfile",
)  # fmt: skip


def false_alarms(redactor: Redactor) -> tuple[int, list[str]]:
    """How many different harmless lines there are, and those that lose something."""
    lines = list(dict.fromkeys(line for line in harmless() if line.strip()))
    hit = [line for line in lines if set(redactor.text(line)[1]) - {"email"}]
    return len(lines), hit


@click.command()
def main() -> None:
    redactor = Redactor.of(RedactConfig())
    lost = missed(redactor)
    for name, texts in lost.items():
        print(f"missed {len(texts)} of {DRAWS}: {name}: {texts[0][:140]!r}")
    whole = sum(name not in lost for name in FORMATS)
    draws = DRAWS * len(FORMATS)
    print(f"{whole} of {len(FORMATS)} formats, {draws - sum(map(len, lost.values()))} of {draws} draws removed")
    count, hit = false_alarms(redactor)
    print(f"false alarms: {len(hit)} of {count} lines")
    for line in hit:
        print(f"  {line.strip()[:110]!r} -> {redactor.clean(line).strip()[:110]!r}")


if __name__ == "__main__":
    main()
