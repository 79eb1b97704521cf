package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/client/kmskey"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/standin/softkms"
)

// compareKMS has the same tenant's requests opened by the enclaves' own keys, and
// by a data key each.
func compareKMS(ctx context.Context, c *cluster.Cluster, t *tenant, o options, r *result.Result) error {
	key, err := kmsKey(c)
	if err != nil {
		return err
	}
	own, err := t.sealing(nil)
	if err != nil {
		return err
	}
	made := &timed{DataKeys: key}
	byKMS, err := t.sealing(func(config *client.Config) { config.DataKeys = made })
	if err != nil {
		return err
	}
	for _, pace := range []struct {
		every   time.Duration
		request string
		name    string
	}{
		{o.kmsEvery, fmt.Sprintf("a question of 200 bytes, an answer of 16 tokens, one each %s", o.kmsEvery), fmt.Sprintf("requests that come each %s", o.kmsEvery)},
		{0, "the same, one right after the other", "requests one right after the other"},
	} {
		k := &kind{name: pace.request, request: question, ways: [2]way{own, byKMS}}
		made.forget()
		if err := measurePairs(ctx, []*kind{k}, o.kmsPairs, t.model, pace.every); err != nil {
			return err
		}
		if err := k.reportKMS(ctx, c, made.each[warmUp:], pace.name, r); err != nil {
			return err
		}
	}
	generated, released, err := kmsCalls(c)
	if err != nil {
		return err
	}
	requests := float64(2 * (o.kmsPairs + warmUp))
	r.Figures = append(r.Figures,
		result.Figure{Name: "KMS calls of the enclave for a request by a data key (Decrypt)", Unit: "calls", Value: float64(released) / requests, Goal: "= 1"},
		result.Figure{Name: "KMS calls of the tenant for a request by a data key (GenerateDataKey)", Unit: "calls", Value: float64(generated) / requests})
	r.Notes = append(r.Notes, "KMS is this project's stand-in, on loopback: its calls are counted in its own log, and their time says nothing of AWS's, for which 35 to "+
		"87 ms have been published for a release to an attested recipient. A request by a data key takes two calls one after the other: the tenant has the key made, "+
		"the enclave has it released. How long the second takes is what the enclave tells the audit log: an attestation document of the software module, the call, in which the stand-in verifies it, and "+
		"decryption by an RSA key for this call alone. What is added beside the calls is a pair's difference less both. "+
		"An RSA key takes tens of milliseconds of a core to make, ahead of the call as long as calls come no faster than that; one right after the other they do, and wait for a "+
		"core, or for a key.")
	return nil
}

// reportKMS says what data keys add, and how much of that is KMS.
func (k *kind) reportKMS(ctx context.Context, c *cluster.Cluster, made []keyMade, to string, r *result.Result) error {
	released, err := keyReleases(ctx, c, made)
	if err != nil {
		return err
	}
	generating, releasing, beside := make([]float64, len(made)), make([]float64, len(made)), make([]float64, len(made))
	for i, m := range made {
		generating[i], releasing[i] = m.took, released[i]
		beside[i] = k.two[i] - k.one[i] - m.took - released[i]
	}
	generate, release := result.SpreadOf(generating), result.SpreadOf(releasing)
	r.Figures = append(r.Figures,
		result.Figure{Name: "added by a data key of KMS (the stand-in), p50, to " + to, Unit: "ms", Value: k.added().mid},
		result.Figure{Name: "… of that the tenant's call, GenerateDataKey", Unit: "ms", Value: generate.P50, Spread: &generate},
		result.Figure{Name: "… and the enclave's, Decrypt, with its attestation document", Unit: "ms", Value: release.P50, Spread: &release},
		result.Figure{Name: "… and beside the calls", Unit: "ms", Value: result.SpreadOf(beside).P50})
	r.Tables = append(r.Tables, tableOf("By a data key of KMS, and by the enclaves' own keys: "+to, "own keys", "data key", []*kind{k}))
	return nil
}

// timed takes the time of each data key's making.
type timed struct {
	client.DataKeys

	each []keyMade // in order: requests come one after the other
}

type keyMade struct {
	request string
	took    float64 // milliseconds
}

func (t *timed) forget() { t.each = nil }

func (t *timed) Generate(ctx context.Context, encryptionContext map[string]string) (plaintext, ciphertext []byte, err error) {
	began := time.Now()
	plaintext, ciphertext, err = t.DataKeys.Generate(ctx, encryptionContext)
	t.each = append(t.each, keyMade{request: encryptionContext["mrgc:request-id"], took: milliseconds(time.Since(began))})
	return plaintext, ciphertext, err
}

// keyReleases are how many milliseconds the release of each request's data key took
// its enclave, as the parents' audit logs have it, once they have all.
func keyReleases(ctx context.Context, c *cluster.Cluster, of []keyMade) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		known, err := auditedReleases(c)
		if err != nil {
			return nil, err
		}
		var times []float64
		for _, made := range of {
			if took, ok := known[made.request]; ok {
				times = append(times, took)
			}
		}
		if len(times) == len(of) {
			return times, nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, fmt.Errorf("the audit logs have %d of %d releases of data keys", len(times), len(of))
		}
	}
}

func auditedReleases(c *cluster.Cluster) (map[string]float64, error) {
	logs, err := filepath.Glob(filepath.Join(c.StateDir(), "audit", "parent-*.log"))
	if err != nil {
		return nil, err
	}
	known := map[string]float64{}
	for _, path := range logs {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		whole := content[:bytes.LastIndexByte(content, '\n')+1] // the last line may be being written
		if _, err := audit.Walk(bytes.NewReader(whole), func(record audit.Record) {
			if seconds, err := strconv.ParseFloat(record.About["took_seconds"], 64); err == nil && record.Event == audit.KeyReleased {
				known[record.About["request"]] = 1000 * seconds
			}
		}); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return known, nil
}

// kmsKey is the tenant's key in the cluster's KMS.
func kmsKey(c *cluster.Cluster) (*kmskey.Key, error) {
	content, err := os.ReadFile(filepath.Join(c.StateDir(), "kms.env"))
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "="); ok {
			env[name] = strings.Trim(value, "'")
		}
	}
	config, err := c.ClientConfig() // the KMS shows a certificate of the same authority
	if err != nil {
		return nil, err
	}
	arn := env["MRGC_KMS_KEY"]
	return kmskey.New(kms.New(kms.Options{
		Region: strings.Split(arn, ":")[3], BaseEndpoint: aws.String(env["AWS_ENDPOINT_URL_KMS"]),
		Credentials: credentials.NewStaticCredentialsProvider(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["AWS_SESSION_TOKEN"]),
		HTTPClient:  kmsClient(config),
	}), arn)
}

func kmsClient(config client.Config) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.TLSClientConfig.RootCAs = config.RootCAs
	return &http.Client{Transport: transport}
}

// kmsCalls counts the calls so far. One that failed is an error.
func kmsCalls(c *cluster.Cluster) (made, released int, err error) {
	log, err := os.ReadFile(filepath.Join(c.StateDir(), "logs", "kms.log"))
	if err != nil {
		return 0, 0, err
	}
	for line := range bytes.Lines(log) {
		var event softkms.Event
		if err := json.Unmarshal(line, &event); err != nil {
			return 0, 0, err
		}
		switch {
		case event.Error != "":
			return 0, 0, fmt.Errorf("KMS refused %s: %s", event.Action, event.Error)
		case event.Action == "kms:GenerateDataKey":
			made++
		case event.Action == "kms:Decrypt":
			released++
		}
	}
	return made, released, nil
}
