"""The style sheet of a report: no framework, light and dark, tables that scroll visibly and unfold on a phone."""

STYLE = """
:root{color-scheme:light dark;--back:#fff;--ink:#1f2328;--soft:#59636e;--line:#d8dee4;--shade:#f6f8fa;
--better:#0a6b2d;--worse:#b3261e;--open:#6a5800}
@media (prefers-color-scheme:dark){:root{--back:#0d1117;--ink:#e6edf3;--soft:#9aa4af;--line:#30363d;--shade:#161b22;
--better:#56d377;--worse:#ff8a80;--open:#e3c65b}svg{filter:brightness(1.25)}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;line-height:1.25;margin:.4em 0}
h2{font-size:1.2rem;margin:2em 0 .5em;border-bottom:1px solid var(--line);padding-bottom:.2em}
h3{font-size:1rem;margin:1.4em 0 .4em}
h1,h2,h3,p,li,figcaption,summary,.long{overflow-wrap:anywhere}
p,ul{margin:.5em 0;max-width:80ch}ul{padding-left:1.2em}
.soft,.small,figcaption{color:var(--soft);font-size:.87em}
.small{display:block;white-space:nowrap}
.progress{display:inline-block;padding:.2em .7em;border-radius:1em;background:var(--shade);border:1px solid var(--line)}
.progress.open{color:var(--open);border-color:currentColor}
.scroll{overflow-x:auto;margin:.6em 0;border:1px solid var(--line);border-radius:6px;
scrollbar-width:thin;scrollbar-color:var(--soft) var(--shade);
background:linear-gradient(to left,var(--back) 30px,transparent) right/60px 100% no-repeat local,
linear-gradient(to left,var(--soft),transparent) right/9px 100% no-repeat scroll}
table{border-collapse:collapse;width:100%;font-size:.9em;font-variant-numeric:tabular-nums}
th,td{padding:.45em .7em;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
thead th{background:var(--shade);font-weight:600;vertical-align:bottom;min-width:5.5em}
tbody th .small{font-weight:400}
tbody th{font-weight:600;overflow-wrap:break-word;position:sticky;left:0;background:var(--back);
min-width:7.5em;max-width:15em;border-right:1px solid var(--line)}
td{min-width:5.5em}.long{min-width:16em}
.verdict{display:block;white-space:nowrap;font-size:.87em}
.better{color:var(--better)}.worse{color:var(--worse)}.open{color:var(--open)}
.strip{display:flex;gap:1px;height:1.1em;min-width:8em;max-width:18em;margin-bottom:.25em}
.strip i{flex:1;min-width:2px;border-radius:1px}
.key{display:flex;flex-wrap:wrap;gap:.3em 1.2em;margin:.5em 0;font-size:.9em}
.key i{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.4em;vertical-align:-.08em}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:18px}
figure{margin:0;min-width:0}figure svg{display:block;width:100%;height:auto}
figure svg *{stroke-linejoin:round;stroke-linecap:butt}
pre{background:var(--shade);border:1px solid var(--line);border-radius:6px;padding:.7em;font-size:.85em}
pre code{display:block;white-space:pre-wrap;overflow-wrap:anywhere;padding-left:2em;text-indent:-2em}
details{margin:.6em 0}summary{cursor:pointer}
@media (max-width:600px){body{font-size:14px}main{padding:10px}
table,tbody,tr,th,td{display:block}thead{display:none}tr{padding:.5em .6em;border-bottom:1px solid var(--line)}
tbody tr:last-child{border-bottom:0}tbody th,td{border:0;padding:.15em 0;min-width:0;max-width:none;position:static}
td{margin-top:.25em;overflow-wrap:anywhere}td[data-of]::before{content:attr(data-of);display:block;color:var(--soft);
font-size:.87em}
.small,.verdict{display:inline;white-space:normal}.small{margin-left:.5em}tbody th .small{display:block;margin:0}
.verdict::before{content:"\\A";white-space:pre}}
"""
