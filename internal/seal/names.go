package seal

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Operation is what a request asks for. It is bound instead of the HTTP path,
// which proxies normalise.
type Operation uint8

// Operations, with their numbers on the wire.
const (
	OpChatCompletions Operation = 1
	OpCompletions     Operation = 2
)

// String gives "chat.completions" or "completions".
func (o Operation) String() string {
	switch o {
	case OpChatCompletions:
		return "chat.completions"
	case OpCompletions:
		return "completions"
	default:
		return fmt.Sprintf("operation(%d)", uint8(o))
	}
}

// Path is the operation's path in OpenAI's API and on the engine; empty for an
// operation that is not known.
func (o Operation) Path() string {
	switch o {
	case OpChatCompletions:
		return "/v1/chat/completions"
	case OpCompletions:
		return "/v1/completions"
	default:
		return ""
	}
}

func (o Operation) known() bool { return o.Path() != "" }

// RecipientType says by which key a recipient gets at the DEK.
type RecipientType uint8

const (
	// TypeEnclave is by a key that the enclave made at its start and attested.
	TypeEnclave RecipientType = 1
	// TypeFleet is by a key of an epoch that several enclaves hold: each has derived
	// it from a seed that KMS releases to attested enclaves only. It outlives its
	// holders, so that what it has run must be remembered outside of them. KMS's
	// administrators could have it released to others.
	TypeFleet RecipientType = 2
	// TypeKMS is by a data key of the tenant's own KMS key, which KMS releases to
	// the enclave by its attestation. The enclave is named by its key as ever; that
	// key opens nothing here. Claims are never of this type.
	TypeKMS RecipientType = 3
)

// String gives "enclave", "fleet" or "kms".
func (t RecipientType) String() string {
	switch t {
	case TypeEnclave:
		return "enclave"
	case TypeFleet:
		return "fleet"
	case TypeKMS:
		return "kms"
	default:
		return fmt.Sprintf("recipient type(%d)", uint8(t))
	}
}

// MaxRecipients is how many recipients an envelope can have.
const MaxRecipients = 4

// KeyID names a recipient: the first 8 bytes of the SHA-256 of its raw claims.
type KeyID [8]byte

// String gives 16 lower-case hex digits.
func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

// RequestID names a request. The client draws it at random; a recipient key
// runs it at most once.
type RequestID [16]byte

// String gives 32 lower-case hex digits.
func (r RequestID) String() string { return hex.EncodeToString(r[:]) }

// ParseRequestID reads what [RequestID.String] gives and nothing else. Errors
// wrap [ErrMalformed].
func ParseRequestID(s string) (RequestID, error) {
	var id RequestID
	if err := parseHex(id[:], s); err != nil {
		return RequestID{}, fmt.Errorf("request id: %w", err)
	}
	return id, nil
}

// FormatKeyIDs gives the value of the recipients header: key ids in the
// envelope's order, comma separated.
func FormatKeyIDs(ids []KeyID) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return strings.Join(texts, ",")
}

// ParseKeyIDs reads what [FormatKeyIDs] gives and nothing else: one to
// [MaxRecipients] ids, all different, no spaces. Errors wrap [ErrMalformed].
func ParseKeyIDs(header string) ([]KeyID, error) {
	texts := strings.SplitN(header, ",", MaxRecipients+1)
	ids := make([]KeyID, len(texts))
	for i, text := range texts {
		if err := parseHex(ids[i][:], text); err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i+1, err)
		}
	}
	if err := checkKeyIDs(ids); err != nil {
		return nil, err
	}
	return ids, nil
}

func checkKeyIDs(ids []KeyID) error {
	if len(ids) < 1 || len(ids) > MaxRecipients {
		return malformed("%d recipients, not 1 to %d", len(ids), MaxRecipients)
	}
	for i, id := range ids {
		if slices.Contains(ids[:i], id) {
			return malformed("recipient %s is listed twice", id)
		}
	}
	return nil
}

// parseHex fills dst from lower-case hex digits, so that every id has one
// spelling: ids are compared and recorded as text by others.
func parseHex(dst []byte, s string) error {
	decoded, err := hex.DecodeString(s)
	if err != nil || len(decoded) != len(dst) || s != strings.ToLower(s) {
		return malformed("not %d lower-case hex digits", 2*len(dst))
	}
	copy(dst, decoded)
	return nil
}

// maxNameBytes bounds every name that travels in a header.
const maxNameBytes = 255

// checkName admits what an HTTP header carries unchanged through any proxy:
// visible ASCII without spaces.
func checkName(what, s string) error {
	if len(s) > maxNameBytes {
		return malformed("%s has %d bytes, more than %d", what, len(s), maxNameBytes)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return malformed("%s has a byte at %d that is not visible ASCII", what, i)
		}
	}
	return nil
}
