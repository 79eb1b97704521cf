package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// model is the name that the engines serve.
const model = "sim"

// front is what tenants' requests go to.
type front struct {
	client *http.Client
	url    string
	// header is what a request carries beside its body; it may be nil.
	header func(r request) http.Header
}

// outcome is how one request went. Times count from when it was due, so that a
// client that falls behind does not make anyone look fast.
type outcome struct {
	at           time.Duration // when it was due, since the start
	first, total time.Duration
	lag          time.Duration // how late it was sent
	err          error
}

// play sends every request when it is due, however the ones before it fare, and
// waits for all answers.
func play(ctx context.Context, f front, requests []request) []outcome {
	outcomes := make([]outcome, len(requests))
	bodies := make([][]byte, len(requests)) // made beforehand: sending is all that is left to do in time
	for i, r := range requests {
		bodies[i] = r.body()
	}
	start := time.Now().Add(100 * time.Millisecond)
	var answers sync.WaitGroup
	for i, r := range requests {
		due := start.Add(r.at)
		if !sleepUntil(ctx, due) {
			for j := i; j < len(requests); j++ {
				outcomes[j].err = ctx.Err()
			}
			break
		}
		answers.Go(func() {
			o := outcome{at: r.at, lag: time.Since(due)}
			first, err := f.ask(ctx, r, bodies[i])
			o.total, o.err = time.Since(due), err
			if err == nil {
				o.first = first.Sub(due)
			}
			outcomes[i] = o
		})
	}
	answers.Wait()
	return outcomes
}

func sleepUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask sends one request, streamed, and says when the first token came. An
// answer that does not end as it should is an error.
func (f front) ask(ctx context.Context, r request, body []byte) (first time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url, bytes.NewReader(body))
	if err != nil {
		return first, err
	}
	req.Header.Set("Content-Type", "application/json")
	if f.header != nil {
		for name, values := range f.header(r) {
			req.Header[name] = values
		}
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return first, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, resp.Body)
		return first, fmt.Errorf("status %d", resp.StatusCode)
	}
	ended := false
	for lines := bufio.NewReaderSize(resp.Body, 4096); ; {
		line, err := lines.ReadSlice('\n')
		switch {
		case err == io.EOF && ended:
			return first, nil
		case err != nil:
			return first, fmt.Errorf("cut answer: %w", err)
		case bytes.HasPrefix(line, []byte("data: [DONE]")):
			ended = true
		case first.IsZero() && bytes.HasPrefix(line, []byte("data: ")):
			first = time.Now()
		}
	}
}

func (r request) body() []byte {
	type said struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	var messages []said
	for _, m := range r.messages {
		messages = append(messages, said{m.role, m.content})
	}
	body, err := json.Marshal(map[string]any{"model": model, "messages": messages, "max_tokens": r.outputTokens, "stream": true})
	if err != nil {
		panic(err) // strings and numbers
	}
	return body
}
