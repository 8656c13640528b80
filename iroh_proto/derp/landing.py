"""The page that a person sees who opens a DERP server in a browser."""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; --ink: #16202c; --soft: #55636f; --line: #d9e0e6;
  --ground: #fbfcfd; --card: #fff; --accent: #5b4fe0; --live: #1a9c63; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7edf3; --soft: #9aa8b5; --line: #2a3541;
  --ground: #10161d; --card: #161e27; --accent: #9d94ff; --live: #4ad295; } }
* { box-sizing: border-box; margin: 0; }
body { font: 17px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--ground); }
main { max-width: 46rem; margin: 0 auto; padding: 4.5rem 1.5rem 3rem; }
h1 { font-size: 2.3rem; line-height: 1.15; letter-spacing: -.02em; margin: .6rem 0 1rem; }
h2 { font-size: 1.05rem; margin: 2.6rem 0 .8rem; }
p { max-width: 40rem; } .lead { font-size: 1.15rem; color: var(--soft); }
a { color: var(--accent); text-underline-offset: .2em; }
.state { color: var(--live); font-weight: 600; font-size: .95rem; }
.state::before { content: ""; display: inline-block; width: .6em; height: .6em; margin-right: .5em;
  border-radius: 50%; background: var(--live); }
svg { display: block; width: 100%; height: auto; margin: 2.2rem 0 0; }
svg text { font: 600 15px system-ui, sans-serif; fill: var(--ink); }
svg .note { font-weight: 400; font-size: 13px; fill: var(--soft); }
.box { fill: var(--card); stroke: var(--line); stroke-width: 1.5; }
.relay { stroke: var(--accent); stroke-width: 2; }
.way { fill: none; stroke: var(--accent); stroke-width: 2; }
.direct { fill: none; stroke: var(--live); stroke-width: 2; stroke-dasharray: 5 5; }
table { width: 100%; border-collapse: collapse; font-size: .95rem; }
td, th { text-align: left; padding: .5rem .8rem .5rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td:first-child { white-space: nowrap; }
pre { overflow-x: auto; margin-top: .8rem; padding: 1rem 1.2rem;
  font: 14px/1.6 ui-monospace, monospace;
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
footer { margin-top: 3rem; font-size: .9rem; color: var(--soft); }
"""

STYLE_SOURCE = f"'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
"""What a content security policy has to allow for the page to have its style."""

_TEXT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>DERP server</title>
<style>{style}</style>
</head>
<body>
<main>
<p class="state">This server is up</p>
<h1>A DERP server, where nodes meet</h1>
<p class="lead">Two programs that know only each other&rsquo;s public key find one another here. The
server passes their packets on until they have a direct path, and as long as there is none. It
cannot read them: they are encrypted from end to end.</p>

<svg viewBox="0 0 720 190" role="img" aria-label="Two nodes joined by this server, and directly">
<path class="way" d="M95 118 C 110 60, 230 45, 285 45"/>
<path class="way" d="M625 118 C 610 60, 490 45, 435 45"/>
<path class="direct" d="M170 145 H 550"/>
<rect class="box relay" x="285" y="18" width="150" height="54" rx="10"/>
<rect class="box" x="20" y="118" width="150" height="54" rx="10"/>
<rect class="box" x="550" y="118" width="150" height="54" rx="10"/>
<text x="360" y="50" text-anchor="middle">this server</text>
<text x="95" y="150" text-anchor="middle">a node</text>
<text x="625" y="150" text-anchor="middle">another node</text>
<text class="note" x="360" y="135" text-anchor="middle">a direct path, once there is one</text>
</svg>

<h2>Use it</h2>
<p>Give your nodes the address of this page as their relay. In Python:</p>
<pre>derp_map = DerpMap.from_urls(["https://<em>this host</em>"])
endpoint = await MagicEndpoint.bind(derp_map=derp_map)</pre>

<h2>What it speaks</h2>
<table>
<tr><th>nodes</th><th>protocol</th></tr>
<tr><td>iroh 0.6 to 0.13</td><td>DERP v2</td></tr>
<tr><td>iroh 0.14 to 0.90</td><td>relay v3, framed or on a websocket</td></tr>
<tr><td>iroh 0.91 and later</td><td><code>iroh-relay-v1</code>, <code>iroh-relay-v2</code></td></tr>
<tr><td>Tailscale</td><td>DERP, framed or on a websocket</td></tr>
</table>

<footer>For those who watch over it: <a href="/healthz">/healthz</a>. About the network:
<a href="https://www.iroh.computer/">iroh.computer</a>.</footer>
</main>
</body>
</html>
"""

LANDING_PAGE = _TEXT.replace("{style}", _STYLE).encode()
"""The page as HTML in UTF-8. It needs nothing but itself."""
