package client

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash"
	"slices"

	"github.com/mrgc/mrgc/internal/seal"
)

const (
	affinityBytes = 16
	// promptPrefixBytes is how much of a completion's prompt its affinity depends
	// on. A prompt that grows keeps its affinity from this length on; what is
	// lost below it is the work of some 256 tokens.
	promptPrefixBytes = 1024
)

// affinity is the opaque key of what a request has in common with others of its
// conversation: HMAC-SHA-256 under a secret of the tenant's, of the model and the
// prompt's beginning, in hex (docs/protocol.md, "Affinity"). It lets a router
// send a conversation's turns to the instance that has their beginning in its
// cache, and tells it nothing else. Empty: the request has no such beginning.
func affinity(secret []byte, op seal.Operation, model string, fields map[string]json.RawMessage) string {
	beginning := promptBeginning(op, fields)
	if len(beginning) == 0 {
		return ""
	}
	mac := hmac.New(sha256.New, secret)
	writeField(mac, []byte{byte(op)})
	writeField(mac, []byte(model))
	for _, part := range beginning {
		writeField(mac, part)
		clear(part[:cap(part)])
	}
	return hex.EncodeToString(mac.Sum(nil)[:affinityBytes])
}

// writeField writes a field as bound fields are written: its length first.
func writeField(mac hash.Hash, field []byte) {
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(field)))
	mac.Write(length[:])
	mac.Write(field)
}

// promptBeginning gives copies of the parts of a request that all turns of its
// conversation begin with, as JSON without white space; none when there are none.
func promptBeginning(op seal.Operation, fields map[string]json.RawMessage) [][]byte {
	if op == seal.OpCompletions {
		prompt := compact(fields["prompt"])
		if len(prompt) == 0 {
			return nil
		}
		return [][]byte{prompt[:min(len(prompt), promptPrefixBytes)]}
	}
	var messages []json.RawMessage
	defer func() {
		for _, message := range messages {
			clear(message)
		}
	}()
	if json.Unmarshal(fields["messages"], &messages) != nil {
		return nil
	}
	opening := messages[:openingLen(messages)]
	if len(opening) == 0 {
		return nil
	}
	parts := [][]byte{compact(fields["tools"])} // empty: none
	for _, message := range opening {
		parts = append(parts, compact(message))
	}
	return parts
}

// openingLen is how many messages a conversation begins with: up to and with the
// first of the user's, which later turns only add to; while there is none, the
// instructions at the start.
func openingLen(messages []json.RawMessage) int {
	roles := make([]string, len(messages))
	for i, message := range messages {
		var m struct {
			Role string `json:"role"`
		}
		_ = json.Unmarshal(message, &m) // a message that is none has no role; the enclave or the engine says so
		roles[i] = m.Role
	}
	if first := slices.Index(roles, "user"); first >= 0 {
		return first + 1
	}
	if other := slices.IndexFunc(roles, func(role string) bool { return role != "system" && role != "developer" }); other >= 0 {
		return other
	}
	return len(roles)
}

// compact is a JSON value without white space between its parts.
func compact(value json.RawMessage) []byte {
	out := bytes.NewBuffer(make([]byte, 0, len(value)))
	if json.Compact(out, value) != nil { // of no value
		return nil
	}
	return out.Bytes()
}
