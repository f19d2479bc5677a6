// Errors of the control plane, with what programs need to know about them.

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protobuf from "protobufjs";

const STATUS_PROTO = fileURLToPath(new URL("protos/google/rpc/status.proto", import.meta.url));
const types = protobuf.loadSync(STATUS_PROTO);
const Status = types.lookupType("google.rpc.Status");

/** A call that failed. */
export class ControlPlaneError extends Error {
  /** @param {grpc.ServiceError} error what grpc-js raised */
  constructor(error) {
    const details = decodeDetails(error.metadata);
    super(error.details || error.message, { cause: error });
    this.name = "ControlPlaneError";
    /** gRPC status code, and its name. */
    this.code = error.code;
    this.codeName = grpc.status[error.code] ?? `code ${error.code}`;
    /** Constant in UPPER_SNAKE; empty if the error is not of the control plane's own making. */
    this.reason = details.get("ErrorInfo")?.reason ?? "";
    /** Values that a program may want, such as the limit that was exceeded. */
    this.metadata = details.get("ErrorInfo")?.metadata ?? {};
    /** The fields of the request that were refused: [{field, description}]. */
    this.violations = details.get("BadRequest")?.fieldViolations ?? [];
    /** How long the server asks to wait, in milliseconds; undefined if it does not. */
    this.retryDelay = milliseconds(details.get("RetryInfo")?.retryDelay);
  }

  /** Whether the same call may succeed a little later. */
  get isTransient() {
    return (
      this.code === grpc.status.UNAVAILABLE ||
      (this.code === grpc.status.RESOURCE_EXHAUSTED && this.retryDelay !== undefined)
    );
  }
}

/** Reads the trailer grpc-status-details-bin: messages by their names without the package. */
function decodeDetails(metadata) {
  const found = new Map();
  const [trailer] = metadata?.get("grpc-status-details-bin") ?? [];
  if (!trailer) return found;
  for (const detail of Status.decode(trailer).details) {
    const fullName = detail.type_url.split("/").pop();
    let type;
    try {
      type = types.lookupType(fullName);
    } catch {
      continue; // a detail that this program does not know
    }
    found.set(type.name, type.toObject(type.decode(detail.value), { longs: Number }));
  }
  return found;
}

function milliseconds(duration) {
  if (!duration) return undefined;
  return (duration.seconds ?? 0) * 1000 + (duration.nanos ?? 0) / 1e6;
}
