// Package seal is the sealed-request protocol, version 1: how a tenant's
// request travels through proxies that must route it but may not read it, and
// how the answer comes back. docs/protocol.md specifies every byte.
//
// A request is encrypted once, under a fresh data encryption key (DEK), and the
// DEK is wrapped for up to four recipients, the enclaves that the client is
// ready to have answer. What stays visible, such as the model and the tenant,
// is bound: change it and the envelope does not open.
//
// The client's side:
//
//	recipient, err := seal.ParseRecipient(rawClaims) // attestation was verified before
//	sealed, err := seal.Seal(rand.Reader, request, []*seal.Recipient{recipient})
//	defer sealed.Wipe()
//	// send sealed.Body, with sealed.Headers next to it
//	answer := sealed.OpenResponse(response.Body)
//	head, err := answer.Head()
//	_, err = io.Copy(dst, answer) // nil only when the answer is complete
//	end, err := answer.End()
//
// The enclave's side:
//
//	key, err := seal.NewRecipientKey(claims) // once per start
//	p, err := seal.ReadPrologue(body)        // cheap checks
//	opened, err := key.Open(now, p, headers, body, seal.Limits{})
//	defer opened.Wipe()
//	err = replays.Add(opened.KeyID, opened.RequestID, opened.Expiry, now)
//	w, err := opened.Respond(rand.Reader, stream)
//	err = w.WriteHead(seal.Head{Status: 200, ContentType: "text/event-stream"})
//	_, err = w.Write(event) // sealed and on its way when Write returns
//	err = w.Close(seal.End{PromptTokens: 12, OutputTokens: 34})
//
// The package reads and writes what it is handed and nothing else: it has no
// clock, opens nothing, starts no goroutine, logs nothing, and no error carries
// a key or content. It decides neither whom to trust (attestation and the
// client's policy do) nor whether a tenant may ask (the enclave checks the
// credential in the [Payload]). It is part of the measured enclave binary, so it
// imports the standard library and a CBOR codec only; a test holds it to that.
//
// Secrets that the package holds as bytes are cleared by the Wipe methods. The
// expanded AES keys inside crypto/aes and the private key inside crypto/hpke
// cannot be reached; they go with the garbage collector, and no later than with
// the enclave's memory.
package seal
