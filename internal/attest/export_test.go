package attest

// PayloadOf is what a document says that was signed, unverified.
func PayloadOf(raw []byte) ([]byte, error) {
	e, err := parseEnvelope(raw)
	if err != nil {
		return nil, err
	}
	return e.Payload, nil
}

// ParsePayload reads what was signed, an enclave's or a host's, and its certificates,
// as is done before any of it is verified.
func ParsePayload(payload []byte, host bool) (*Document, error) {
	kind := ofEnclave
	if host {
		kind = ofHost
	}
	p, err := parsePayload(payload, kind)
	if err != nil {
		return nil, err
	}
	c, err := parseChain(p.CABundle, p.Certificate)
	if err != nil {
		return nil, err
	}
	doc := p.document(kind)
	doc.Region = c.region()
	return doc, nil
}
