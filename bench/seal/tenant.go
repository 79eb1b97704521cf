package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
)

// tenant is one of a cluster's, with all that it is given.
type tenant struct {
	config     client.Config
	model      string
	apiKey     string
	key        credential.Key
	http       *http.Client      // to Envoy
	recipients []*seal.Recipient // as many as the cluster has instances
}

func tenantOf(ctx context.Context, c *cluster.Cluster, instances int) (*tenant, error) {
	env, err := c.Env()
	if err != nil {
		return nil, err
	}
	t := &tenant{model: env["MRGC_MODEL"], apiKey: env["OPENAI_API_KEY"]}
	if t.config, err = c.ClientConfig(); err != nil {
		return nil, err
	}
	if t.key, err = credential.Parse(t.apiKey); err != nil {
		return nil, err
	}
	t.http = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: t.config.RootCAs}, ForceAttemptHTTP2: true, DisableCompression: true,
	}}
	return t, t.awaitRecipients(ctx, instances)
}

// awaitRecipients waits until the cluster offers all of its enclaves' keys: a
// router that has just started knows some before others.
func (t *tenant) awaitRecipients(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		offered, err := t.offered(ctx)
		if err == nil && len(offered.Recipients) >= n {
			for _, o := range offered.Recipients {
				// Whoever measures trusts what it has started: package client does not.
				recipient, err := seal.ParseRecipient(o.Claims)
				if err != nil {
					return err
				}
				t.recipients = append(t.recipients, recipient)
			}
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the cluster offers %d recipients, want %d", len(offered.Recipients), n), err)
		}
	}
}

func (t *tenant) offered(ctx context.Context) (offered api.Recipients, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.config.Endpoints[0]+api.PathKeys+"?model="+t.model, nil)
	if err != nil {
		return offered, err
	}
	t.admit(req.Header)
	resp, err := t.http.Do(req)
	if err != nil {
		return offered, err
	}
	defer resp.Body.Close()
	return offered, json.NewDecoder(resp.Body).Decode(&offered)
}

// admit puts in what Envoy knows a tenant by.
func (t *tenant) admit(h http.Header) {
	h.Set("Authorization", "Bearer "+string(t.key.EdgeToken()))
	h.Set(api.HeaderTenant, t.key.Tenant())
}

// request is a chat completion.
type request struct {
	promptBytes, tokens int
	stream              bool
}

func (r request) body(model string) []byte {
	body, err := json.Marshal(map[string]any{
		"model": model, "max_tokens": r.tokens, "stream": r.stream,
		"messages": []map[string]string{{"role": "user", "content": strings.Repeat("why? ", r.promptBytes/5)}},
	})
	if err != nil {
		panic(err) // strings and numbers can be written
	}
	return body
}

// way sends a request and reads all of the answer.
type way func(ctx context.Context, body []byte) error

// sealing is a tenant's program with package client in it.
func (t *tenant) sealing(change func(*client.Config)) (way, error) {
	config := t.config
	if change != nil {
		change(&config)
	}
	transport, err := client.New(config)
	if err != nil {
		return nil, err
	}
	through := &http.Client{Transport: transport}
	return func(ctx context.Context, body []byte) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://mrgc/v1/chat/completions", bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+t.apiKey)
		return readAll(through.Do(req))
	}, nil
}

// clear is the same without sealing: what routing goes by is in the headers, and
// the body is as it is.
func (t *tenant) clear() way {
	kids := make([]seal.KeyID, len(t.recipients))
	for i, r := range t.recipients {
		kids[i] = r.KeyID()
	}
	return func(ctx context.Context, body []byte) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.config.Endpoints[0]+api.PathSealed, bytes.NewReader(body))
		if err != nil {
			return err
		}
		t.admit(req.Header)
		req.Header.Set("Content-Type", api.ContentTypeSealedRequest)
		req.Header.Set(api.HeaderModel, t.model)
		req.Header.Set(api.HeaderSize, "64/64")
		req.Header.Set(api.HeaderRequestID, newRequestID().String())
		req.Header.Set(api.HeaderRecipients, seal.FormatKeyIDs(kids))
		return readAll(t.http.Do(req))
	}
}

func newRequestID() (id seal.RequestID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// readAll wants an answer that is whole.
func readAll(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var said bytes.Buffer
	if _, err := io.Copy(&said, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || !bytes.Contains(said.Bytes(), []byte(`"choices"`)) {
		return fmt.Errorf("answered %d: %.300s", resp.StatusCode, said.Bytes())
	}
	return nil
}
