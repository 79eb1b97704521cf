package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
)

// measureBytes counts what a request and its answer take on the wire beside what
// is in them, with an engine that speaks token by token.
func measureBytes(ctx context.Context, _ options, r *result.Result) (err error) {
	c, err := up(ctx, "bin", "--instances", "1", "--sim-profile", "h100-llama-8b")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	t, err := tenantOf(ctx, c, 1)
	if err != nil {
		return err
	}
	table := result.Table{
		Title:   "Bytes of bodies, sealed to one recipient (each other adds 1181 to a request)",
		Columns: []string{"", "in clear", "sealed", "of these padding", "padding, of clear", "all that is added, of clear"},
	}
	var largeRequests, streams, pieces share
	for _, one := range []request{
		question,
		{promptBytes: 2 << 10, tokens: 64, stream: true},
		{promptBytes: 8 << 10, tokens: 256, stream: true},
		{promptBytes: 32 << 10, tokens: 256},
		{promptBytes: 100_000, tokens: 256, stream: true},
	} {
		asked, answered, err := t.exchange(ctx, one)
		if err != nil {
			return err
		}
		what := "answer of %d tokens"
		if one.stream {
			what += ", streamed"
			streams.add(answered)
		} else if one.tokens >= 256 {
			pieces.add(answered)
		}
		if one.promptBytes >= 4<<10 {
			largeRequests.add(asked)
		}
		table.Rows = append(table.Rows, asked.row(fmt.Sprintf("request with a prompt of %d bytes", one.promptBytes)), answered.row(fmt.Sprintf(what, one.tokens)))
	}
	r.Figures = append(r.Figures,
		result.Figure{Name: "padding of requests above 4 KiB, of their bytes in clear", Unit: "%", Value: largeRequests.padded(), Goal: "≤ 15"},
		result.Figure{Name: "padding of an answer in one piece (256 tokens)", Unit: "%", Value: pieces.padded(), Goal: "≤ 15"},
		result.Figure{Name: "padding of answers streamed token by token", Unit: "%", Value: streams.padded(), Goal: "≤ 15"})
	r.Tables = append(r.Tables, table)
	r.Notes = append(r.Notes, "Padding of a request is the zeros of its payload, and of an answer those of its data frames; all that is added is that, the recipient's "+
		"wrapped key, credentials, tags, and the answer's head and end with its receipt. Streams come token by token, some 150 a second; make bench-lengths "+
		"has other rates, and what waits for what.")
	return nil
}

// share is what a body takes in clear and sealed.
type share struct{ clear, sealed, padding int }

func (s *share) add(other share) {
	s.clear, s.sealed, s.padding = s.clear+other.clear, s.sealed+other.sealed, s.padding+other.padding
}

func (s *share) padded() float64 { return 100 * float64(s.padding) / float64(s.clear) }

func (s *share) row(name string) []string {
	added := 100 * float64(s.sealed-s.clear) / float64(s.clear)
	return []string{name, fmt.Sprint(s.clear), fmt.Sprint(s.sealed), fmt.Sprint(s.padding), fmt.Sprintf("%.1f %%", s.padded()), fmt.Sprintf("%.1f %%", added)}
}

// exchange seals by hand, to count what is on the wire.
func (t *tenant) exchange(ctx context.Context, one request) (asked, answered share, err error) {
	body := one.body(t.model)
	payload := seal.Payload{Credential: t.key.EnclaveToken(), CacheSecret: t.key.CacheSecret(), Body: body}
	sealed, err := seal.Seal(rand.Reader, seal.Request{
		RequestID: newRequestID(), Operation: seal.OpChatCompletions, Model: t.model, Tenant: t.key.Tenant(), Expiry: time.Now().Add(time.Minute), Payload: payload,
	}, t.recipients[:1])
	if err != nil {
		return asked, answered, err
	}
	defer sealed.Wipe()
	chunks, err := chunksOf(sealed.Body[requestHeadBytes:])
	if err != nil {
		return asked, answered, err
	}
	asked = share{clear: len(body), sealed: len(sealed.Body), padding: plaintextOf(chunks) - payloadLengths - len(payload.Credential) - len(payload.CacheSecret) - len(body)}
	wire, data, err := t.post(ctx, sealed)
	if err != nil {
		return asked, answered, err
	}
	if chunks, err = chunksOf(wire[responseHeadBytes:]); err != nil || len(chunks) < 3 {
		return asked, answered, errors.Join(err, fmt.Errorf("an answer of %d chunks", len(chunks)))
	}
	frames := chunks[1 : len(chunks)-1] // without head and end
	return asked, share{clear: data, sealed: len(wire), padding: plaintextOf(frames) - frameHeadBytes*len(frames) - data}, nil
}

// What docs/protocol.md specifies.
const (
	requestHeadBytes  = 30 + 1181 + 32 // prologue with one recipient, and commitment
	responseHeadBytes = 1 + 8 + 32
	payloadLengths    = 2 + 2 + 4
	frameHeadBytes    = 1 + 2
	chunkHeadBytes    = 1 + 2
	tagBytes          = 16
)

// chunksOf gives each chunk's ciphertext.
func chunksOf(body []byte) (chunks [][]byte, err error) {
	for len(body) > 0 {
		if len(body) < chunkHeadBytes {
			return nil, errors.New("a chunk is cut")
		}
		end := chunkHeadBytes + int(binary.BigEndian.Uint16(body[1:]))
		if len(body) < end {
			return nil, errors.New("a chunk is cut")
		}
		chunks, body = append(chunks, body[chunkHeadBytes:end]), body[end:]
	}
	return chunks, nil
}

func plaintextOf(chunks [][]byte) (n int) {
	for _, chunk := range chunks {
		n += len(chunk) - tagBytes
	}
	return n
}

// post sends a sealed request, and gives the answer as it came and how many bytes
// were in it.
func (t *tenant) post(ctx context.Context, sealed *seal.Sealed) (wire []byte, data int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.config.Endpoints[0]+api.PathSealed, bytes.NewReader(sealed.Body))
	if err != nil {
		return nil, 0, err
	}
	t.admit(req.Header)
	req.Header.Set("Content-Type", api.ContentTypeSealedRequest)
	req.Header.Set(api.HeaderModel, sealed.Headers.Model)
	req.Header.Set(api.HeaderRequestID, sealed.Headers.RequestID.String())
	req.Header.Set(api.HeaderRecipients, seal.FormatKeyIDs(sealed.Headers.KeyIDs))
	req.Header.Set(api.HeaderFrames, api.FramesRead)
	resp, err := t.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	if wire, err = io.ReadAll(resp.Body); err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("answered %d: %.300s", resp.StatusCode, wire)
	}
	answer := sealed.OpenResponse(bytes.NewReader(wire))
	head, err := answer.Head()
	if err != nil {
		return nil, 0, err
	}
	body, err := io.ReadAll(answer)
	if err == nil && head.Status != http.StatusOK {
		err = fmt.Errorf("refused under seal: %.300s", body)
	}
	return wire, len(body), err
}
