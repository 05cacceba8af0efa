// The jobs of one DAG run or task instance: the tab in Airflow's pages of those.

import { html, useEffect, useState } from "./preact.js";
import { get, getFromAirflow, query, repeatedly } from "./api.js";
import { Job } from "./job.js";
import { Problem } from "./parts.js";
import { JobTable } from "./table.js";

const REFRESH_MS = 3000;
const FOUND_MS = 20000; // once there is a job that keeps itself up to date
const LIMIT = 500; // jobs of one run that are shown

const owner = Object.fromEntries(["dag_id", "run_id", "task_id"].map((key) => [key, query.get(key) ?? ""]));
const mapIndex = /^-?\d+$/.test(query.get("map_index") ?? "") ? Number(query.get("map_index")) : -1;

// The job that the task waits for, whoever submitted it: Airflow knows the link to its page.
async function linked() {
  const parts = [owner.dag_id, owner.run_id, owner.task_id].map(encodeURIComponent);
  const path = `/dags/${parts[0]}/dagRuns/${parts[1]}/taskInstances/${parts[2]}/links`;
  const { extra_links: links } = await getFromAirflow(path, { map_index: mapIndex });
  const url = links?.Job && new URL(links.Job, location.href);
  const match = url && url.pathname.match(/\/air-executor\/jobs\/([^/]+)$/);
  if (!match) return [];
  const connId = url.searchParams.get("conn_id") ?? "";
  return [{ ...(await get(`/jobs/${match[1]}`, { conn_id: connId })), connId }];
}

async function submitted() {
  const asked = { ...owner, limit: LIMIT, map_index: owner.task_id ? mapIndex : undefined };
  const connections = await get("/connections");
  const away = [];
  const lists = await Promise.all(
    connections.map(async (connId) => {
      try {
        const { jobs } = await get("/jobs", { ...asked, conn_id: connId });
        return jobs.map((job) => ({ ...job, connId }));
      } catch (error) {
        if (error.status === 404) return []; // a connection that is not valid
        if (!error.away) throw error;
        away.push(error); // the jobs of the others are shown
        return [];
      }
    }),
  );
  return { jobs: lists.flat(), away: away[0] ?? null };
}

async function look() {
  const { jobs: found, away } = await submitted();
  if (!owner.task_id) return { jobs: found, away };
  const others = await linked().catch((error) => {
    if (error.status === 403 || error.status === 404) return []; // the link leads nowhere, or not for this user
    throw error;
  });
  const known = new Set(found.map((job) => `${job.connId} ${job.name}`));
  const jobs = [...others.filter((job) => !known.has(`${job.connId || "air_executor_default"} ${job.name}`)), ...found];
  return { jobs, away: jobs.length ? null : away }; // a task has one job, and that is here
}

export function Owned() {
  const [jobs, setJobs] = useState(null);
  const [error, setError] = useState(null);
  const isFound = owner.task_id !== "" && jobs?.length === 1;
  useEffect(() => {
    let current = true;
    const end = repeatedly(async () => {
      try {
        const found = await look();
        if (current) setJobs(found.jobs), setError(found.away);
      } catch (problem) {
        if (current) setError(problem);
      }
    }, isFound ? FOUND_MS : REFRESH_MS);
    return () => {
      current = false;
      end();
    };
  }, [isFound]);
  if (jobs === null) return html`<${Problem} error=${error} />${error ? null : html`<p class="quiet">Loading …</p>`}`;
  if (isFound) return html`<${Job} key=${jobs[0].name} name=${jobs[0].name} connId=${jobs[0].connId} />`;
  return html`<${Problem} error=${error} />
    ${error?.away && !jobs.length ? null : jobs.length
      ? html`<${JobTable} jobs=${jobs} isInRun=${true} caption="Jobs that were submitted here, the newest first" />`
      : html`<p class="empty">${owner.task_id ? "This task has no job of Air-Executor." : "No task of this run has submitted a job to Air-Executor."}</p>`}`;
}
