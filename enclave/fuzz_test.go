package enclave_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/seal"
)

// FuzzCheckRequest: what is accepted reaches the engine as JSON that has one
// meaning, for the model that was routed on, with fields that are known, and
// with the values that the tenant wrote.
func FuzzCheckRequest(f *testing.F) {
	for _, seed := range []string{
		chat, stream, with(`"seed":1,"seed":2`), with(`"user":"me","store":true`), saying(`[{"image_url":{"url":"http://x"}}]`),
		saying(`[[[[{"a":{"a":1e999}}]]]]`), `{"model":"` + model + `","prompt":"\ud800\u0000<>"}`, with("\"n\":\t1 ,\"stop\" : null "),
		`{"model":"` + model + `","m\u006fdel":"other"}`, chat + "{}", "[]", "null", "", "\xff",
		with(`"stream":true,"stream_options":{"include_usage":true,"x":1}`), with(`"stream":true,"stream_options":{"include_usage":false}`),
		with(`"stream":true,"stream_options":[]`), with(`"stream":true,"stream_options":{"include_usage":"yes"},"max_tokens":1e3`),
	} {
		f.Add(true, []byte(seed))
		f.Add(false, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, isChat bool, body []byte) {
		op := seal.OpCompletions
		if isChat {
			op = seal.OpChatCompletions
		}
		given := bytes.Clone(body)
		out, declared, refused := enclave.CheckRequest(op, model, body)
		if !bytes.Equal(given, body) {
			t.Fatal("the request was changed in place")
		}
		if refused != nil {
			if refused.Status != 400 || out != nil {
				t.Fatalf("refused with %v and %q", refused, out)
			}
			return
		}
		if err := unambiguous(out); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		got, want := object(t, out), object(t, body)
		allowed := enclave.AllowedFields(op)
		for name := range got {
			if !allowed[name] {
				t.Fatalf("field %q reaches the engine", name)
			}
		}
		for name := range want {
			if !allowed[name] {
				delete(want, name)
			}
		}
		if options, asked := got["stream_options"].(map[string]any); got["stream"] == true && asked && options["include_usage"] == true {
			want["stream_options"] = options // the tenant's, or the enclave's in its place
		}
		if sizeOf(string(body)) != declared || sizeOf(string(out)) != declared {
			t.Fatalf("%q has size %s, %q has %s, and %s is wanted", body, sizeOf(string(body)), out, sizeOf(string(out)), declared)
		}
		if got["model"] != model || !reflect.DeepEqual(got, want) {
			t.Fatalf("%q became %q", body, out)
		}
	})
}

// object reads one JSON object and keeps numbers as they are written.
func object(t *testing.T, text []byte) map[string]any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var fields map[string]any
	if err := decoder.Decode(&fields); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return fields
}

// unambiguous reads JSON to its end and fails on a name that
// occurs twice in its object. It keeps no depth and recurses nowhere, unlike
// what it checks.
func unambiguous(text []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	type level struct {
		names map[string]bool // nil: an array
		value bool            // a name has been read, its value comes next
	}
	var open []level
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) && len(open) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if len(open) > 0 {
			in := &open[len(open)-1]
			if name, ok := token.(string); ok && in.names != nil && !in.value {
				if in.names[name] {
					return fmt.Errorf("name %q occurs twice", name)
				}
				in.names[name], in.value = true, true
				continue
			}
			in.value = false
		}
		switch token {
		case json.Delim('{'):
			open = append(open, level{names: map[string]bool{}})
		case json.Delim('['):
			open = append(open, level{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
	}
}
