// A small client of the control plane on @grpc/grpc-js: calls with deadlines and safe retries, and
// watches that resume by themselves.

import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { Credentials } from "./credentials.js";
import { ControlPlaneError } from "./errors.js";

// Where midcourse/control/v1/control.proto lies; a service of your own keeps a copy.
const PROTOS =
  process.env.MIDCOURSE_PROTOS ?? fileURLToPath(new URL("../../protos", import.meta.url));
const ATTEMPTS = 4;
const LONGEST_DELAY_MS = 2_000;

const definition = protoLoader.loadSync("midcourse/control/v1/control.proto", {
  includeDirs: [PROTOS],
  longs: Number, // revisions and steps stay far below 2^53
  enums: String,
  oneofs: true,
});
const { ControlPlaneService } = grpc.loadPackageDefinition(definition).midcourse.control.v1;

/** A connection to a control plane. */
export class ControlPlane {
  /**
   * @param {string} [address] host:port; by default what MIDCOURSE_CONTROL_PLANE says
   * @param {Credentials} [credentials] by default what the environment says
   */
  constructor(
    address = process.env.MIDCOURSE_CONTROL_PLANE || "127.0.0.1:50051",
    credentials = new Credentials(),
  ) {
    this.credentials = credentials;
    this.stub = new ControlPlaneService(address, credentials.channel(address), {
      "grpc.keepalive_time_ms": 30_000,
    });
  }

  close() {
    this.stub.close();
  }

  /**
   * Calls a method with one answer; again with backoff while the server is not available.
   *
   * That is safe for what only reads, and for an update that has a request id: the control plane
   * gives the first answer to a repetition.
   *
   * @param {string} method such as "UpdateParameters"
   * @param {object} request fields in camelCase
   * @param {object} [options]
   * @param {number} [options.timeout] milliseconds that each try may take
   * @returns {Promise<object>} the response
   */
  async call(method, request, { timeout = 10_000 } = {}) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#callOnce(method, request, timeout);
      } catch (error) {
        if (attempt === ATTEMPTS || !error.isTransient) throw error;
        await sleep(backoff(attempt, error.retryDelay));
      }
    }
  }

  #callOnce(method, request, timeout) {
    return new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + timeout };
      this.stub[method](request, this.credentials.metadata(), options, (error, response) =>
        error ? reject(new ControlPlaneError(error)) : resolve(response),
      );
    });
  }

  /**
   * Yields what happens to jobs, in order and without gaps, across restarts of the server.
   *
   * @param {object} request WatchJobsRequest
   * @param {AbortSignal} [signal] ends the watch
   */
  async *watchJobs(request, signal) {
    let position = request.position ?? "";
    let failures = 0;
    while (!signal?.aborted) {
      const stream = this.stub.WatchJobs({ ...request, position }, this.credentials.metadata());
      const cancel = () => stream.cancel();
      signal?.addEventListener("abort", cancel, { once: true });
      try {
        for await (const event of stream) {
          failures = 0;
          if (event.position) position = event.position;
          yield event;
        }
      } catch (raised) {
        if (signal?.aborted) return;
        const error = new ControlPlaneError(raised);
        failures += 1;
        if (error.code === grpc.status.OUT_OF_RANGE) {
          position = ""; // that far back is gone: begin with a snapshot again
        } else if (!error.isTransient || failures > 10) {
          throw error;
        }
        await sleep(backoff(failures, error.retryDelay));
      } finally {
        signal?.removeEventListener("abort", cancel);
        stream.cancel();
      }
    }
  }
}

/** Exponential backoff with full jitter, on top of what the server asked for; milliseconds. */
function backoff(failures, asked = 0) {
  return asked + Math.random() * Math.min(LONGEST_DELAY_MS, 200 * 2 ** (failures - 1));
}
