// Shows the page that the server has named.

import { html, render } from "./preact.js";
import { airflowAddress, isEmbedded, page, pageAddress, query } from "./api.js";
import { Job } from "./job.js";
import { Jobs } from "./jobs.js";
import { Owned } from "./owned.js";

const connId = query.get("conn_id") ?? "";

function Path() {
  if (page.page === "owned") return null;
  const jobs = html`<a href=${pageAddress("/jobs", { conn_id: connId })}>Air-Executor jobs</a>`;
  const parts = [isEmbedded ? null : html`<a href=${airflowAddress("/")}>Airflow</a>`, page.page === "job" ? jobs : null];
  const shown = parts.filter(Boolean);
  return shown.length ? html`<nav class="path" aria-label="Path">${shown.map((part) => html`<span>${part}</span>`)}</nav>` : null;
}

const pages = { jobs: () => html`<${Jobs} />`, job: () => html`<${Job} name=${page.job} connId=${connId} />`, owned: () => html`<${Owned} />` };

render(html`<${Path} />${pages[page.page]()}`, document.getElementById("app"));
