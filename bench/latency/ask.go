package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/bench/cluster"
)

// ways are the two ends at which a cluster can be asked.
type ways struct {
	engine  way // its Unix socket
	through way // mrgc connect
	model   string
}

// way is a place where OpenAI's API is served.
type way struct {
	client *http.Client
	url    string
	key    string
	status int // that a request is answered with; 0: 200
}

const pathChat = "/chat/completions"

// waysOf finds both ends. Connections to the engine are kept where it keeps
// them: llama.cpp closes idle ones without a word, and a request that meets that
// fails. A new one costs some 50 µs.
func waysOf(c *cluster.Cluster, keepConnections bool) (ways, error) {
	env, err := c.Env()
	if err != nil {
		return ways{}, err
	}
	w := ways{through: throughConnect(env), model: env["MRGC_MODEL"]}
	socket, err := c.EngineSocket()
	if err != nil {
		return ways{}, err
	}
	w.engine = way{url: "http://engine/v1" + pathChat, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 64, DisableKeepAlives: !keepConnections, DisableCompression: true,
	}}}
	return w, nil
}

func throughConnect(env map[string]string) way {
	return way{url: env["OPENAI_BASE_URL"] + pathChat, key: env["OPENAI_API_KEY"], client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 256, DisableCompression: true,
	}}}
}

// body makes a request for an answer of so many tokens, the same at each call,
// with or without a stream.
func (w ways) body(tokens int) func(stream bool) []byte {
	return func(stream bool) []byte { return chat(w.model, tokens, map[string]any{"stream": stream}) }
}

func chat(model string, tokens int, also map[string]any) []byte {
	fields := map[string]any{
		"model": model, "max_tokens": tokens, "temperature": 0, "seed": 1,
		"messages": []map[string]string{{"role": "user", "content": "In a few sentences: why is the sky blue?"}},
	}
	for name, value := range also {
		fields[name] = value
	}
	body, err := json.Marshal(fields)
	if err != nil {
		panic(err) // strings and numbers can be written
	}
	return body
}

// timing is how long an answer took, from before the request was sent.
type timing struct{ first, total time.Duration }

// ask sends one request and reads the whole answer.
func (w way) ask(ctx context.Context, body []byte) (timing, error) {
	began := time.Now()
	resp, err := w.send(ctx, body)
	if err != nil {
		return timing{}, err
	}
	defer resp.Body.Close()
	var t timing
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		t.first, err = readStream(resp.Body, began)
	} else {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	t.total = time.Since(began)
	if t.first == 0 {
		t.first = t.total
	}
	return t, err
}

// send returns when the answer has begun. Whoever calls it closes the body.
func (w way) send(ctx context.Context, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if w.key != "" {
		req.Header.Set("Authorization", "Bearer "+w.key)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, err
	}
	if want := max(w.status, http.StatusOK); resp.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s answered %d, not %d: %s", w.url, resp.StatusCode, want, text)
	}
	return resp, nil
}

// readStream reads a whole stream and says when its first token came.
func readStream(events io.Reader, began time.Time) (first time.Duration, err error) {
	lines := bufio.NewScanner(events)
	done := false
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if ok && first == 0 && hasContent(data) {
			first = time.Since(began)
		}
		done = done || string(data) == "[DONE]"
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	if !done || first == 0 {
		return 0, errors.New("the stream has no token, or no end")
	}
	return first, nil
}

func hasContent(event []byte) bool {
	var e struct {
		Choices []struct {
			Delta struct {
				Content string `json:"content"`
			} `json:"delta"`
		} `json:"choices"`
	}
	return json.Unmarshal(event, &e) == nil && len(e.Choices) > 0 && e.Choices[0].Delta.Content != ""
}

// burst sends n requests at once and gives the mean of their times.
func (w way) burst(ctx context.Context, n int, body []byte) (timing, error) {
	times := make([]timing, n)
	group, ctx := errgroup.WithContext(ctx)
	for i := range times {
		group.Go(func() (err error) {
			times[i], err = w.ask(ctx, body)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return timing{}, err
	}
	var mean timing
	for _, t := range times {
		mean.first += t.first / time.Duration(n)
		mean.total += t.total / time.Duration(n)
	}
	return mean, nil
}
