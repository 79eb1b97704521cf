package client

import (
	"encoding/json"
	"net/http"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/size"
)

// question is what an SDK asks, with what those who route it get to see.
type question struct {
	operation seal.Operation
	model     string
	size      string // in buckets
	affinity  string // may be empty
	body      []byte // the JSON, as it came; the caller's to clear

	id string // under which it was sealed last; empty before
}

// readQuestion reads a request's JSON as far as routing needs it. Whether it is
// acceptable otherwise is the enclave's to say.
func readQuestion(op seal.Operation, body []byte, key *credential.Key, policy *Policy) (*question, *api.Error) {
	var fields map[string]json.RawMessage
	defer func() {
		for _, copied := range fields {
			clear(copied)
		}
	}()
	q := &question{operation: op, body: body}
	if json.Unmarshal(body, &fields) != nil || json.Unmarshal(fields["model"], &q.model) != nil || q.model == "" {
		return nil, api.Errorf(http.StatusBadRequest, "invalid_request", "the request is not a JSON object with a \"model\"")
	}
	q.size = size.Of(fields).String()
	if !policy.NoAffinity {
		secret := key.AffinitySecret()
		defer clear(secret)
		q.affinity = affinity(secret, op, q.model, fields)
	}
	return q, nil
}
