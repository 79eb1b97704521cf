package api

// Recipient is one key that a request may be sealed to, as the keys route and
// the parents serve it. Whoever passes it on can neither read nor forge it, and
// is trusted with nothing: the client verifies both fields.
type Recipient struct {
	Claims      []byte `json:"claims"`      // deterministic CBOR, hashed as received
	Attestation []byte `json:"attestation"` // COSE_Sign1 document whose user_data is SHA-256(claims)
}

// Offered is how many recipients an answer of [PathKeys] has: as many as a
// client seals to by default, and one of a fleet's after them if there is any. One
// that seals to more asks for n of them: "?model=M&n=4".
const Offered = 3

// Recipients is the answer of [PathKeys], best candidate first.
type Recipients struct {
	Recipients []Recipient `json:"recipients"`
}

// Model is one entry of [PathModels], in OpenAI's shape.
type Model struct {
	ID      string `json:"id"`
	Object  string `json:"object"` // "model"
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`

	Metadata ModelMetadata `json:"metadata"`
}

// ModelMetadata is what OpenAI's shape has no place for. Nobody vouches for it: a
// client that demands a mode verifies the recipients' claims.
type ModelMetadata struct {
	Modes []string `json:"modes"` // of isolation in which the model is served to the tenant now (docs/isolation.md)
}

// Models is the answer of [PathModels].
type Models struct {
	Object string  `json:"object"` // "list"
	Data   []Model `json:"data"`
}
