package enclave_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/seal"
)

// FuzzCopyEvents: whatever an engine says, which its host can make up, and however it
// is cut into pieces, nothing panics; the tenant reads all of it in its order, or, where
// the enclave alone has asked for usage, what is left of it without whole events; and
// the answer is complete only if it ends as streams do.
func FuzzCopyEvents(f *testing.F) {
	for _, said := range []string{
		done, delta + done, delta + usageEvent + done, usageEvent, strings.ReplaceAll(usageEvent, "\n", "\r\n") + "data: [DONE]",
		"data: " + strings.Repeat("x", 9000) + "\n\n" + usageEvent + done, strings.Repeat(delta, 100) + done, "\n\n\r\n\n", "data: [DONE]\n\nmore",
		`data: {"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":1e9}}` + "\n\n" + done, "\xff\x00" + done,
	} {
		f.Add([]byte(said), []byte{1, 200, 3}, true)
		f.Add([]byte(said), []byte{}, false)
	}
	key, err := seal.NewRecipientKey(seal.Claims{
		Model: model, Region: "use1", Mode: seal.ModeProcess, NotBefore: time.Unix(1, 0), NotAfter: time.Unix(1000, 0),
	})
	if err != nil {
		f.Fatal(err)
	}
	req := seal.Request{Operation: seal.OpChatCompletions, Model: model, Tenant: tenant, Expiry: time.Unix(60, 0), RequestID: seal.RequestID{1}}
	sealed, err := seal.Seal(rand.Reader, req, []*seal.Recipient{key.Recipient})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, said, cuts []byte, usageAsked bool) {
		body := bytes.NewReader(sealed.Body)
		prologue, err := seal.ReadPrologue(body)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := key.Open(time.Unix(2, 0), prologue, sealed.Headers, body, seal.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		var wire bytes.Buffer
		answer, err := opened.Respond(rand.Reader, &wire)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(answer.WriteHead(seal.Head{Status: 200}), enclave.CopyEvents(answer, &slowly{pieces: cut(said, cuts)}, usageAsked, time.Hour)); err != nil {
			t.Fatal(err)
		}
		read, err := io.ReadAll(sealed.OpenResponse(&wire))
		if whole := strings.HasSuffix(strings.TrimRight(string(said), "\r\n"), "data: [DONE]"); whole != (err == nil) {
			t.Fatalf("%q, whole: %t, gives %v", said, whole, err)
		}
		if !usageAsked && !bytes.Equal(read, said) {
			t.Fatalf("%q became %q", said, read)
		}
		if rest := withoutEvents(read, said); rest != "" {
			t.Fatalf("%q became %q, of which %q is not of it", said, read, rest)
		}
	})
}

// cut gives pieces of these sizes, in turn, and of 64 KiB when there are none.
func cut(said, sizes []byte) (pieces []string) {
	for i := 0; len(said) > 0; i++ {
		n := 64 << 10
		if len(sizes) > 0 {
			n = 1 + int(sizes[i%len(sizes)])
		}
		n = min(n, len(said))
		pieces, said = append(pieces, string(said[:n])), said[n:]
	}
	return pieces
}

// withoutEvents gives what of read is not said, where events of said may be left out
// that report usage: nothing, if all is well.
func withoutEvents(read, said []byte) string {
	for len(said) > 0 {
		var event []byte // lines, up to an empty one
		for line := range bytes.Lines(said) {
			event = append(event, line...)
			if text := string(line); text == "\n" || text == "\r\n" {
				break
			}
		}
		switch {
		case bytes.HasPrefix(read, event):
			read = read[len(event):]
		case !bytes.Contains(event, []byte(`"usage"`)):
			return string(read)
		}
		said = said[len(event):]
	}
	return string(read)
}
