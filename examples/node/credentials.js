// What a client connects with: whom it believes, and how it proves who it is.

import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";

/** Credentials as the environment says; the same variables as those of the midcourse command. */
export class Credentials {
  constructor(environment = process.env) {
    // A PEM file with the server's authority, or "system" for the public ones. Without it there
    // is no TLS.
    this.ca = environment.MIDCOURSE_TLS_CA;
    this.token = environment.MIDCOURSE_TOKEN;
    this.tokenFile = environment.MIDCOURSE_TOKEN_FILE;
    this.certificate = environment.MIDCOURSE_CLIENT_CERT;
    this.key = environment.MIDCOURSE_CLIENT_KEY;
  }

  /** What grpc-js connects to an address with. */
  channel(address) {
    if (!this.ca && !this.certificate) {
      if ((this.token || this.tokenFile) && !isLocal(address)) {
        throw new Error(
          `a token is not sent to ${address} without TLS: set MIDCOURSE_TLS_CA to a PEM file ` +
            "with the server's authority, or to 'system'",
        );
      }
      return grpc.credentials.createInsecure();
    }
    const roots = !this.ca || this.ca === "system" ? null : readFileSync(this.ca);
    const key = this.key ? readFileSync(this.key) : null;
    const chain = this.certificate ? readFileSync(this.certificate) : null;
    return grpc.credentials.createSsl(roots, key, chain);
  }

  /** What goes along with a call. The file is read each time: a token can be replaced. */
  metadata() {
    const metadata = new grpc.Metadata();
    const token = this.token || (this.tokenFile && readFileSync(this.tokenFile, "utf8").trim());
    if (token) metadata.set("authorization", `Bearer ${token}`);
    return metadata;
  }
}

function isLocal(address) {
  return /^(unix:|localhost:|127\.\d+\.\d+\.\d+:|\[::1\]:)/.test(address);
}
