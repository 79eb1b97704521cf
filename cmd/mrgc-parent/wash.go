package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/release"
	releasefollow "github.com/mrgc/mrgc/internal/release/follow"
	stateopen "github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/parent"
	"github.com/mrgc/mrgc/parent/launch"
	"github.com/mrgc/mrgc/parent/weights"
)

// washOptions are the flags of full washes.
type washOptions struct {
	command, state, note    string
	releases, releasesKey   string
	developmentRoot         string
	modelSums               string
	modelReadBytesPerSecond int
}

func washFlags(f *flag.FlagSet) *washOptions {
	o := &washOptions{}
	f.StringVar(&o.command, "enclave-command", "", `JSON list: program and arguments that run an enclave in the foreground, with {place} where two must differ, as in -enclave; default: somebody else starts the enclave, and there are no full washes`)
	f.StringVar(&o.state, "state", "", "with -enclave-command: state store where washes are recorded: "+stateopen.Forms)
	f.StringVar(&o.note, "wash-note", "", "with -enclave-command: file of this machine's where the last wash is noted, so that a start knows of one that was cut off while the state store is away")
	f.StringVar(&o.releases, "releases", "", "with -enclave-command: signed manifest of enclave releases, by which a fresh enclave is verified")
	f.StringVar(&o.releasesKey, "releases-key", "", "PEM file of the key that verifies it")
	f.StringVar(&o.developmentRoot, "trust-development-root", "", "PEM file of a development root to verify enclaves by, in place of AWS's")
	f.StringVar(&o.modelSums, "model-sums", "", "what the model's files have to be, as sha256sum writes it: each 30 s it is looked whether they are there, and a full wash reads them")
	f.IntVar(&o.modelReadBytesPerSecond, "model-read-bytes-per-second", 200<<20, "how fast they are read when they are checked; 0: as fast as can be")
	return o
}

// washes is what a parent washes its instance with; of one that does not, enclaves
// and config are nil.
type washes struct {
	enclaves parent.Enclaves
	config   *parent.Wash
	files    *parent.ModelFiles
	run      func(context.Context)
	close    func() error
}

func (o *washOptions) open(ctx context.Context, region, enclaveAt string, getenv func(string) string, output io.Writer, logger *slog.Logger) (washes, error) {
	w := washes{run: func(context.Context) {}, close: func() error { return nil }}
	var check *weights.Checker
	if o.modelSums != "" {
		var err error
		if check, err = weights.Open(o.modelSums, o.modelReadBytesPerSecond); err != nil {
			return w, err
		}
		w.files = &parent.ModelFiles{Look: check.Look}
	}
	if o.command == "" {
		if o.state+o.releases+o.releasesKey+o.developmentRoot != "" {
			return w, errors.New("-state, -releases and -trust-development-root are for full washes: these need -enclave-command")
		}
		return w, nil
	}
	if o.state == "" || o.note == "" || o.releases == "" || o.modelSums == "" {
		return w, errors.New("-enclave-command needs -state, -wash-note, -releases, -releases-key and -model-sums: a wash checks and records")
	}
	var command []string
	if err := json.Unmarshal([]byte(o.command), &command); err != nil {
		return w, fmt.Errorf("-enclave-command: want a JSON list of program and arguments: %w", err)
	}
	enclaves, err := launch.New(launch.Config{Command: command, Address: enclaveAt, Env: enclaveEnvironment(getenv), Output: output})
	if err != nil {
		return w, err
	}
	manifest, err := releasefollow.Open(o.releases, o.releasesKey, logger)
	if err != nil {
		return w, err
	}
	root := attest.AWSRoot()
	if o.developmentRoot != "" {
		content, err := os.ReadFile(o.developmentRoot)
		if err == nil {
			root, err = attest.ParseRoot(content)
		}
		if err != nil {
			return w, fmt.Errorf("-trust-development-root: %w", err)
		}
	}
	records, err := stateopen.Store(ctx, o.state, logger)
	if err != nil {
		return w, err
	}
	return washes{
		enclaves: enclaves, files: w.files, run: manifest.Run, close: records.Close,
		config: &parent.Wash{Records: records, Note: o.note, CheckModel: check.Verify, StepTimeout: stepTimeout + 2*check.Takes(), Attested: attested(manifest.Manifest, root, fleet.Region(region))},
	}, nil
}

// stepTimeout is how long a step of a wash may take, beside twice the time that the
// model's files take to read.
const stepTimeout = 10 * time.Minute

// attested verifies a fresh enclave as clients do.
func attested(manifest func() *release.Manifest, root *x509.Certificate, region fleet.Region) func(claims, document []byte, now time.Time) error {
	return func(claims, document []byte, now time.Time) error {
		m := manifest()
		policy := attest.Policy{Roots: []*x509.Certificate{root}, Releases: m.Releases, MinVersion: m.MinVersion}
		hash := sha256.Sum256(claims)
		_, err := attest.Verify(document, policy, attest.Expected{UserData: hash[:], Region: region.AWS()}, now)
		return err
	}
}

// enclaveEnvironment is what an enclave gets that is a process of this machine: its
// own token, and never this parent's.
func enclaveEnvironment(getenv func(string) string) []string {
	env := []string{"GOTRACEBACK=none"} // stacks show arguments (package lockdown)
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "GOMAXPROCS"} {
		if value := getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	if token := strings.TrimSpace(getenv("MRGC_ENCLAVE_IDENTITY_TOKEN")); token != "" {
		env = append(env, "MRGC_IDENTITY_TOKEN="+token)
	}
	return env
}
