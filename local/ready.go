package local

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	readyTimeout = 2 * time.Minute // a large model takes its time to load
	readyPoll    = 100 * time.Millisecond
	probeTimeout = 2 * time.Second
	askTimeout   = time.Minute
)

// waitUntilReady waits for every instance, router and Envoy, and says what is
// missing when it takes too long.
func (c *cluster) waitUntilReady(ctx context.Context) error {
	done := c.ui.step("health")
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("not ready in time"))
	defer cancel()
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	for {
		missing := c.missing(ctx)
		if missing == nil {
			done("%d regions, %d instances", len(c.plan.regions), len(c.plan.instances()))
			return nil
		}
		c.ui.progress("waiting for %v", missing)
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster is not healthy after %s: %w; its logs are in %s/logs", readyTimeout, missing, c.plan.stateDir)
		case <-ticker.C:
		}
	}
}

// missing names the first thing that is not ready.
func (c *cluster) missing(ctx context.Context) error {
	for _, r := range c.plan.regions {
		if err := c.regionMissing(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

func (c *cluster) regionMissing(ctx context.Context, r region) error {
	synced := false
	for _, router := range r.routers {
		has, err := c.routerMissing(ctx, router, len(r.routers)-1)
		if err != nil {
			return fmt.Errorf("%s: %w", router.name, err)
		}
		synced = synced || has
	}
	if !synced {
		return errors.New("envoy has not acknowledged its configuration")
	}
	if err := getJSON(ctx, "http://"+r.health+"/healthz", nil); err != nil {
		return fmt.Errorf("envoy: %w", err)
	}
	if r.controller != "" {
		if err := getJSON(ctx, "http://"+r.controller+"/status", nil); err != nil {
			return fmt.Errorf("controller: %w", err)
		}
	}
	return nil
}

// routerMissing says what a router lacks, or whether the region's Envoy has its
// configuration from it.
func (c *cluster) routerMissing(ctx context.Context, r routerPart, peers int) (synced bool, err error) {
	var fleet struct {
		Instances []struct {
			ID     string `json:"id"`
			Ready  bool   `json:"ready"`
			Reason string `json:"reason"`
		} `json:"instances"`
	}
	if err := getJSON(ctx, "http://"+r.admin+"/fleet", &fleet); err != nil {
		return false, err
	}
	for _, in := range fleet.Instances {
		if !in.Ready {
			return false, fmt.Errorf("instance %s: %s", in.ID, in.Reason)
		}
	}
	if want := len(c.plan.instances()); len(fleet.Instances) < want {
		return false, fmt.Errorf("%d of %d instances registered", len(fleet.Instances), want)
	}
	if err := getJSON(ctx, "http://"+r.admin+"/ready", nil); err != nil {
		return false, err
	}
	var others struct {
		Peers []struct {
			State string `json:"state"`
		} `json:"peers"`
	}
	if err := getJSON(ctx, "http://"+r.admin+"/peers", &others); err != nil {
		return false, err
	}
	for _, p := range others.Peers {
		if p.State == "connected" {
			peers--
		}
	}
	if peers > 0 {
		return false, errors.New("another router is not heard")
	}
	var envoys struct {
		Envoys []struct {
			Synced bool `json:"synced"`
		} `json:"envoys"`
	}
	if err := getJSON(ctx, "http://"+r.admin+"/envoys", &envoys); err != nil {
		return false, err
	}
	return len(envoys.Envoys) > 0 && envoys.Envoys[0].Synced, nil
}

// getJSON fetches a page of a loopback admin; into may be nil.
func getJSON(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers with status %d", req.URL.Path, resp.StatusCode)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

const question = "In one sentence: what is the capital of France?"

// ask sends one request the way a tenant's SDK does, and shows the answer as it
// comes.
func (c *cluster) ask(ctx context.Context, apiKey string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	body, err := json.Marshal(map[string]any{
		"model": c.plan.options.ModelName, "stream": true, "max_tokens": 48, "temperature": 0.2,
		"messages": []map[string]string{{"role": "user", "content": question}},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.plan.connect+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+apiKey)
	c.ui.say("\n  asking the cluster, sealed: %s", question)
	sent := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("first request: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("first request: status %d: %s", resp.StatusCode, text)
	}
	firstByte := time.Since(sent)
	answer, err := c.showAnswer(resp.Body)
	if err != nil {
		return fmt.Errorf("first request: %w", err)
	}
	if answer == "" {
		return errors.New("first request: the answer is empty")
	}
	c.ui.say("  (first byte after %d ms, all of it after %d ms)", firstByte.Milliseconds(), time.Since(sent).Milliseconds())
	return nil
}

// showAnswer reads server-sent events up to "[DONE]".
func (c *cluster) showAnswer(events io.Reader) (string, error) {
	var answer strings.Builder
	lines := bufio.NewScanner(events)
	c.ui.write("  ")
	defer c.ui.write("\n")
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return answer.String(), nil
		}
		var event struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return "", fmt.Errorf("event: %w", err)
		}
		for _, choice := range event.Choices {
			c.ui.write(choice.Delta.Content)
			answer.WriteString(choice.Delta.Content)
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	return "", io.ErrUnexpectedEOF
}
