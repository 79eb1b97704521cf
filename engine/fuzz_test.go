package engine_test

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"testing"

	"github.com/mrgc/mrgc/engine"
)

// FuzzInsert looks for a request that is another one, or none, once the guard has
// put its members in front; and for one whose parts nobody counts.
func FuzzInsert(f *testing.F) {
	f.Add([]byte(`{"model":"m","messages":[]}`))
	f.Add([]byte(`{"n":2}`))
	f.Add([]byte(`{"n":2,"N":1}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"":0`))
	f.Add([]byte(` {"a":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		spread, spreadErr := engine.Spreads(body)
		reader, length, err := engine.Insert(`"id_slot":1,"cache_prompt":false,`, bytes.NewReader(body), int64(len(body)))
		if err != nil {
			if bytes.HasPrefix(body, []byte(`{"`)) {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		got, err := io.ReadAll(reader)
		if err != nil || int64(len(got)) != length {
			t.Fatalf("%d bytes, announced as %d (%v)", len(got), length, err)
		}
		var before, after map[string]json.RawMessage
		if json.Unmarshal(body, &before) != nil {
			if json.Valid(got) {
				t.Fatalf("%q was no JSON and %q is", body, got)
			}
			return
		}
		if err := json.Unmarshal(got, &after); err != nil {
			t.Fatalf("%q: %v", got, err)
		}
		want := map[string]json.RawMessage{"id_slot": json.RawMessage("1"), "cache_prompt": json.RawMessage("false")}
		maps.Copy(want, before) // the enclave lets no such names through
		if !maps.EqualFunc(after, want, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
			t.Fatalf("%q has become %q", body, got)
		}
		if spreadErr != nil {
			t.Fatalf("%q: %v", body, spreadErr)
		}
		if n := string(before["n"]); n != "" && n != "1" && n != "null" && !spread {
			t.Fatalf("%q is taken for one request", body)
		}
	})
}
