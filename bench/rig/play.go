package rig

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/size"
)

// Front is what tenants' requests go to.
type Front struct {
	Client *http.Client
	URL    string
	// Header is what a request carries beside its body; it may be nil.
	Header func(r Request) http.Header
}

// Request is one request as it is sent.
type Request struct {
	At           time.Duration // since the start of the traffic
	Conversation int
	PromptTokens int
	OutputTokens int
	Body         []byte
}

// SealedFront sends requests to an Envoy with the headers of sealed ones, each
// to every instance: the body alone is in clear.
func SealedFront(c RouterConfig, key credential.Key) (Front, error) {
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(c.Dir, "ca.crt"))
	if err != nil {
		return Front{}, err
	}
	roots.AppendCertsFromPEM(ca)
	var kids []string
	for i := range c.Parents {
		kids = append(kids, KeyID(i))
	}
	bearer := "Bearer " + string(key.EdgeToken())
	return Front{
		URL: "https://" + c.Tenants + api.PathSealed,
		Client: &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}, ForceAttemptHTTP2: true,
		}},
		Header: func(r Request) http.Header {
			id := make([]byte, 16)
			_, _ = rand.Read(id)
			h := http.Header{}
			h.Set("Content-Type", api.ContentTypeSealedRequest)
			h.Set("Authorization", bearer)
			h.Set(api.HeaderModel, Model)
			h.Set(api.HeaderTenant, key.Tenant())
			h.Set(api.HeaderRequestID, hex.EncodeToString(id))
			h.Set(api.HeaderRecipients, strings.Join(kids, ","))
			h.Set(api.HeaderAffinity, fmt.Sprintf("conversation-%d", r.Conversation))
			h.Set(api.HeaderSize, size.Round(r.PromptTokens, r.OutputTokens).String())
			return h
		},
	}, nil
}

// Outcome is how one request went. Times count from when it was due, so that a
// client that falls behind does not make anyone look fast.
type Outcome struct {
	At           time.Duration // when it was due, since the start
	First, Total time.Duration
	Lag          time.Duration // how late it was sent
	Err          error
}

// Play sends every request when it is due, however the ones before it fare, and
// waits for all answers.
func Play(ctx context.Context, f Front, requests []Request) []Outcome {
	outcomes := make([]Outcome, len(requests))
	start := time.Now().Add(100 * time.Millisecond)
	var answers sync.WaitGroup
	for i, r := range requests {
		due := start.Add(r.At)
		if !sleepUntil(ctx, due) {
			for j := i; j < len(requests); j++ {
				outcomes[j].Err = ctx.Err()
			}
			break
		}
		answers.Go(func() {
			o := Outcome{At: r.At, Lag: time.Since(due)}
			first, err := f.Ask(ctx, r)
			o.Total, o.Err = time.Since(due), err
			if err == nil {
				o.First = first.Sub(due)
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

// Ask sends one request, streamed, and says when the first token came. An
// answer that does not end as it should is an error.
func (f Front) Ask(ctx context.Context, r Request) (first time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL, bytes.NewReader(r.Body))
	if err != nil {
		return first, err
	}
	req.Header.Set("Content-Type", "application/json")
	if f.Header != nil {
		for name, values := range f.Header(r) {
			req.Header[name] = values
		}
	}
	resp, err := f.Client.Do(req)
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
