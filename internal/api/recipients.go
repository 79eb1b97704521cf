package api

// Recipient is one key that a request may be sealed to, as the keys route and
// the parents serve it. Whoever passes it on can neither read nor forge it, and
// is trusted with nothing: the client verifies both fields.
type Recipient struct {
	Claims      []byte `json:"claims,omitempty"`      // deterministic CBOR, hashed as received
	Attestation []byte `json:"attestation,omitempty"` // COSE_Sign1 document whose user_data is SHA-256(claims)
	// KeyID stands for both where the client has said that it knows them. It follows
	// from the claims.
	KeyID string `json:"kid,omitempty"`
}

const (
	// Offered is how many recipients an answer of [PathKeys] has: as many as a
	// client seals to by default, and one of a fleet's after them if there is any. One
	// that seals to more asks for n of them: "?model=M&n=4".
	Offered = 3
	// MaxSets is how many selections of recipients a client may ask for at once:
	// "&sets=8".
	MaxSets = 16
	// MaxKnown is how many recipients a client may name as known: "&known=KID,KID".
	MaxKnown = 64
)

// Recipients is the answer of [PathKeys], best candidate first.
type Recipients struct {
	Recipients []Recipient `json:"recipients"`
	// Sets are selections among Recipients by index, each drawn like the first. A client
	// seals its requests to one after the other: who kept to one set would send all that
	// it has to the same few instances until it asks again.
	Sets [][]int `json:"sets,omitempty"`
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
