package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/client"
)

// answerTimeout is when a request counts as failed that nobody answers.
const answerTimeout = 30 * time.Second

// asked is one request, and what became of it.
type asked struct {
	sent  time.Time
	first time.Time // when the answer began; zero: it never did
	ended time.Time
	err   error
}

// failed says whether a request failed of which no byte had been answered; cut, that
// it broke off within its answer.
func (a asked) failed() bool { return a.err != nil && a.first.IsZero() }
func (a asked) cut() bool    { return a.err != nil && !a.first.IsZero() }

// load sends requests through a client of its own, at a steady rate, whether or not
// earlier ones have been answered.
type load struct {
	client  *client.Client
	http    *http.Client
	url     string
	key     string
	body    []byte
	cancel  context.CancelFunc
	sending sync.WaitGroup

	mu  sync.Mutex
	all []asked // guarded by mu: in the order in which they ended
}

// startLoad sends so many requests a second to endpoints, the first preferred, until
// stop is called.
func startLoad(ctx context.Context, c *cluster.Cluster, endpoints []string, perSecond int) (*load, error) {
	config, err := c.ClientConfig()
	if err != nil {
		return nil, err
	}
	env, err := c.Env()
	if err != nil {
		return nil, err
	}
	config.Endpoints = endpoints
	sealing, err := client.New(config)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]any{
		"model": env["MRGC_MODEL"], "max_tokens": 16, "stream": true,
		"messages": []map[string]string{{"role": "user", "content": "Which regions are left?"}},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &load{
		client: sealing, http: &http.Client{Transport: sealing, Timeout: answerTimeout}, url: endpoints[0] + "/v1/chat/completions",
		key: env["OPENAI_API_KEY"], body: body, cancel: cancel,
	}
	l.sending.Go(func() { l.send(ctx, time.Second/time.Duration(perSecond)) })
	return l, nil
}

func (l *load) send(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			asking.Go(func() {
				one := l.ask(context.WithoutCancel(ctx)) // what was sent is waited for
				l.mu.Lock()
				defer l.mu.Unlock()
				l.all = append(l.all, one)
			})
		}
	}
}

// ask sends one request and reads its answer to the end.
func (l *load) ask(ctx context.Context) (one asked) {
	one.sent = time.Now()
	defer func() { one.ended = time.Now() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(l.body))
	if err != nil {
		one.err = err
		return one
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+l.key)
	resp, err := l.http.Do(req)
	if err != nil {
		one.err = err
		return one
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		one.err = fmt.Errorf("status %d: %s", resp.StatusCode, text)
		return one
	}
	one.first = time.Now()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && !bytes.Contains(answer, []byte("[DONE]")) {
		err = io.ErrUnexpectedEOF
	}
	one.err = err
	return one
}

// stop ends the sending, waits for what was sent, and gives all of it.
func (l *load) stop() []asked {
	l.cancel()
	l.sending.Wait()
	l.client.CloseIdleConnections()
	return l.all
}

// tally is what a fault cost.
type tally struct {
	requests, failed, cut int
	lastFailure           time.Duration // after the fault; 0: none failed
	next                  time.Duration // until the first request that was sent afterwards began to be answered
	slowest               time.Duration // of those sent afterwards, to the begin of the answer
	why                   error         // of the last failure
}

// between counts what had not ended when the fault came, and was sent before the end.
func between(all []asked, fault, end time.Time) (t tally) {
	for _, one := range all {
		if one.ended.Before(fault) || !one.sent.Before(end) {
			continue
		}
		t.requests++
		if one.err != nil {
			t.lastFailure, t.why = max(t.lastFailure, one.ended.Sub(fault)), one.err
		}
		switch {
		case one.failed():
			t.failed++
		case one.cut():
			t.cut++
		case !one.sent.Before(fault):
			if after := one.first.Sub(fault); t.next == 0 || after < t.next {
				t.next = after
			}
			t.slowest = max(t.slowest, one.first.Sub(one.sent))
		}
	}
	return t
}
