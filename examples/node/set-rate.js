// Sets a training job's learning rate, waits until it is in force, then watches the job.
//
//   node set-rate.js my-run 5e-5 --reason "loss is flat" --for 60

import { randomUUID } from "node:crypto";
import { parseArgs } from "node:util";
import { ControlPlane } from "./control-plane.js";
import { ControlPlaneError } from "./errors.js";

const SETTLED = new Set([
  "UPDATE_STATE_APPLIED",
  "UPDATE_STATE_REJECTED",
  "UPDATE_STATE_EXPIRED",
  "UPDATE_STATE_CANCELLED",
]);
const ENDED = new Set(["JOB_STATE_FINISHED", "JOB_STATE_FAILED"]);
const USAGE = "usage: node set-rate.js JOB RATE [--reason TEXT] [--for SECONDS]";

const { job, rate, reason, seconds } = parse();
const plane = connect();
try {
  process.exitCode = (await setRate()) ? 0 : 1;
  await watch();
} catch (error) {
  if (!(error instanceof ControlPlaneError)) throw error;
  const reasonGiven = error.reason ? `, ${error.reason}` : "";
  console.error(`${error.message} (${error.codeName}${reasonGiven})`);
  for (const { field, description } of error.violations)
    console.error(`  ${field}: ${description}`);
  process.exitCode = 1;
} finally {
  plane.close();
}

function connect() {
  try {
    return new ControlPlane();
  } catch (error) {
    console.error(error.message);
    process.exit(2);
  }
}

/** Returns whether the new rate is in force. */
async function setRate() {
  // Made once, before the first try: whatever is repeated, the change is made once.
  const requestId = randomUUID();
  let { update } = await plane.call("UpdateParameters", {
    job: `jobs/${job}`,
    requestId,
    spec: {
      changes: [{ parameter: "learning_rate", set: { value: { number: rate } } }],
      reason,
    },
  });
  console.log(`accepted as revision ${update.revision}`);
  while (!SETTLED.has(update.state)) {
    const request = { name: update.name, timeout: { seconds: 30 } };
    ({ update } = await plane.call("WaitUpdate", request, { timeout: 40_000 }));
  }
  if (update.state !== "UPDATE_STATE_APPLIED") {
    const { message = "" } = update.rejected ?? {};
    console.error(`${word(update.state)}: ${message}`);
    return false;
  }
  for (const { parameter, oldValue, newValue } of update.applied.transitions) {
    const [before, after] = [oldValue, newValue].map((value) => value?.number ?? "unknown");
    console.log(`applied at step ${update.applied.step}: ${parameter} ${before} -> ${after}`);
  }
  return true;
}

/** Prints what happens to the job, until it ends or the time is up. */
async function watch() {
  const ending = new AbortController();
  const timer = setTimeout(() => ending.abort(), seconds * 1000);
  process.once("SIGINT", () => ending.abort());
  const request = { name: `jobs/${job}`, progressInterval: { seconds: 1 } };
  try {
    for await (const { type, job: seen } of plane.watchJobs(request, ending.signal)) {
      if (!seen) continue; // a bookmark
      const metrics = (seen.metrics ?? []).map(({ name, value }) => `${name} ${value}`);
      const step = seen.progress ? `step ${seen.progress.step}` : "no step yet";
      console.log([word(type), word(seen.state), step, ...metrics].join("  "));
      if (ENDED.has(seen.state)) break;
    }
  } finally {
    clearTimeout(timer);
  }
}

/** JOB_STATE_RUNNING -> running */
function word(name) {
  return name.replace(/^(UPDATE_STATE|JOB_STATE|JOB_EVENT_TYPE)_/, "").toLowerCase();
}

function parse() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        reason: { type: "string", default: "" },
        for: { type: "string", default: "3600" },
      },
    });
    const [name, rateText, ...more] = positionals;
    const given = {
      job: name,
      rate: Number(rateText),
      reason: values.reason,
      seconds: Number(values.for),
    };
    if (!name || more.length || !Number.isFinite(given.rate) || !Number.isFinite(given.seconds)) {
      throw new Error(USAGE);
    }
    return given;
  } catch (error) {
    console.error(error.message === USAGE ? USAGE : `${error.message}\n${USAGE}`);
    process.exit(2);
  }
}
