// Seal measures what confidentiality costs a request: in time, beside the same
// request in clear through the same parts; in calls of KMS, where a tenant has
// requests opened under a key of its own; and in bytes.
//
// Two clusters run side by side, every part of them real but the engine, which
// takes no time. One is what `mrgc up` starts. In the other a program that opens
// nothing stands in the enclaves' place (./unsealed), so that what is sent to it in
// clear goes through Envoy, picker, parent, relay and guard as the other does. Each
// pair of requests is one to each, in random order, one right after the other.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
)

// options say how much to measure.
type options struct {
	pairs    int // of each kind of request
	kmsPairs int // with and without a data key of KMS
	kmsEvery time.Duration
	only     string
	beside   string // where the result of time is kept instead; empty: with the others
}

func main() {
	var o options
	flag.IntVar(&o.pairs, "pairs", 1000, "pairs of each kind of request")
	flag.IntVar(&o.kmsPairs, "kms-pairs", 150, "pairs of requests with a data key of KMS and without")
	flag.DurationVar(&o.kmsEvery, "kms-every", 500*time.Millisecond, "from one pair with a data key of KMS to the next, when they do not come one right after the other")
	flag.StringVar(&o.only, "only", "", "time or bytes: measure that alone; bytes do not depend on what else the machine does")
	flag.StringVar(&o.beside, "beside", "", "keep the result of time beside the others, for this machine: a name such as slow")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "seal:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	measures := []struct {
		what, name, title string
		measure           func(context.Context, options, *result.Result) error
	}{
		{"time", "seal", "Sealing: what confidentiality costs a request", measureTime},
		{"bytes", "seal-bytes", "Sealing: what it adds to a request's bytes, and an answer's", measureBytes},
	}
	measured := false
	for _, m := range measures {
		if o.only != "" && o.only != m.what {
			continue
		}
		measured = true
		r := result.Result{Name: m.name, Title: m.title, Command: "make bench-seal"}
		if o.beside != "" && m.what == "time" {
			r.Name, r.Title = m.name+"-"+o.beside, m.title+", on another machine: "+o.beside
			r.Command = "go run ./bench/seal -only time -beside " + o.beside
		}
		if err := m.measure(ctx, o, &r); err != nil {
			return err
		}
		r.Print(os.Stdout)
		if err := r.Write(); err != nil {
			return err
		}
	}
	if !measured {
		return fmt.Errorf("-only %s: want time or bytes", o.only)
	}
	return nil
}

// instances is how many a cluster has: a request is sealed to as many.
const instances = "3"

// up starts a cluster of one region whose engines take no time.
func up(ctx context.Context, bin string, more ...string) (*cluster.Cluster, error) {
	return cluster.StartFrom(ctx, bin, append([]string{"--ask=false", "--engine", "sim", "--regions", "use1"}, more...)...)
}

// unsealedPrograms makes a folder of the cluster's programs in which the one that
// takes requests in clear has the enclave's name.
func unsealedPrograms(ctx context.Context) (bin string, err error) {
	bin = filepath.Join("bin", "unsealed")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	for _, program := range []string{"mrgc", "mrgc-parent"} {
		to := filepath.Join(bin, program)
		if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err := os.Link(filepath.Join("bin", program), to); err != nil {
			return "", fmt.Errorf("%w: run `make build` first", err)
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(bin, "mrgc-enclave"), "./bench/seal/unsealed")
	build.Env, build.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	return bin, build.Run()
}
