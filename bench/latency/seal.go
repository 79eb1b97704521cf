package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/internal/seal"
)

const benchModel = "model"

// measureSeal measures what the protocol itself costs: a request sealed to as
// many recipients as a client seals to, and opened by the last of them.
func measureSeal(rounds int, r *result.Result) error {
	body := chat(benchModel, 16, nil)
	for _, recipients := range []int{1, 3} {
		var keys []*seal.RecipientKey
		for range recipients {
			key, err := newKey()
			if err != nil {
				return err
			}
			keys = append(keys, key)
		}
		var times []float64
		for i := range rounds + warmUp {
			began := time.Now()
			if err := sealAndOpen(keys, body); err != nil {
				return err
			}
			if i >= warmUp {
				times = append(times, milliseconds(time.Since(began)))
			}
		}
		spread := result.SpreadOf(times)
		r.Figures = append(r.Figures, result.Figure{
			Name: fmt.Sprintf("seal a request to %d and open it", recipients), Value: spread.P50, Unit: "ms", Goal: "≤ 0.5", Spread: &spread,
		})
	}
	return nil
}

func newKey() (*seal.RecipientKey, error) {
	now := time.Now()
	return seal.NewRecipientKey(seal.Claims{
		Model: benchModel, Region: "use1", Mode: seal.ModeProcess, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
	})
}

func sealAndOpen(keys []*seal.RecipientKey, body []byte) error {
	now := time.Now()
	request := seal.Request{
		Operation: seal.OpChatCompletions, Model: benchModel, Tenant: "dev", Expiry: now.Add(time.Minute),
		Payload: seal.Payload{Credential: make([]byte, 43), CacheSecret: make([]byte, 32), Body: body},
	}
	if _, err := rand.Read(request.RequestID[:]); err != nil {
		return err
	}
	var to []*seal.Recipient
	for _, key := range keys {
		to = append(to, key.Recipient)
	}
	sealed, err := seal.Seal(rand.Reader, request, to)
	if err != nil {
		return err
	}
	defer sealed.Wipe()
	wire := bytes.NewReader(sealed.Body)
	prologue, err := seal.ReadPrologue(wire)
	if err != nil {
		return err
	}
	opened, err := keys[len(keys)-1].Open(now, prologue, sealed.Headers, wire, seal.Limits{})
	if err != nil {
		return err
	}
	opened.Wipe()
	return nil
}
