package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/routing"
)

// sealedContender is a policy of a whole cluster, and what its tenant seals to.
type sealedContender struct {
	policy     routing.Policy
	recipients int  // instances that a request is sealed to: api.Offered, or all of them
	silent     bool // no picker answers, and Envoy has its weights alone
}

func (c sealedContender) name() string {
	if c.silent {
		return fmt.Sprintf("weights alone, sealed to %d", c.recipients)
	}
	return fmt.Sprintf("MRGC %s, sealed to %d", c.policy, c.recipients)
}

// sealedField is every policy, with the recipients that a client is offered and
// with a choice among all instances, and a cluster without a picker.
func sealedField() []sealedContender {
	var all []sealedContender
	for _, policy := range policies {
		for _, recipients := range []int{api.Offered, engineCount} {
			all = append(all, sealedContender{policy: policy, recipients: recipients})
		}
	}
	return append(all, sealedContender{recipients: api.Offered, silent: true})
}

// sealedRun is one contender's run with one seed.
type sealedRun struct {
	scenario  string
	contender sealedContender
	seed      uint64
	measured
	relayed  float64            // share of the requests that a parent forwarded to another's
	resealed float64            // share of the requests that the client sealed once more
	programs map[string]float64 // processor time of a request, ms, by program
}

// rateFigure is the figure by which the sealed measurement knows the other's
// rate.
const rateFigure = "rate"

func runSealed(ctx context.Context, o options) error {
	recording, err := readRecording()
	if err == nil && o.rate == 0 {
		o.rate, err = rateMeasured()
	}
	if err != nil {
		return err
	}
	scenes, err := o.scenes(scenarios())
	if err != nil {
		return err
	}
	b, field := sealedBook{options: o}, sealedField()
	for _, s := range scenes {
		for seed := range uint64(o.seeds) {
			requests := traffic(recording, shape{rate: o.rate, duration: o.duration, reuse: s.reuse}, seed)
			order := rand.New(rand.NewPCG(seed, 7)).Perm(len(field)) //nolint:gosec // an order is no secret
			for _, i := range order {
				if !o.only.MatchString(field[i].name()) {
					continue
				}
				if err := b.enter(ctx, field[i], s, seed, requests); err != nil {
					return errors.Join(err, b.write(err))
				}
			}
		}
	}
	return b.write(nil)
}

// rateMeasured is the rate of the table in clear.
func rateMeasured() (float64, error) {
	all, err := result.ReadAll()
	if err != nil {
		return 0, err
	}
	for _, r := range all {
		for _, f := range r.Figures {
			if r.Name == "routing" && f.Name == rateFigure {
				return f.Value, nil
			}
		}
	}
	return 0, errors.New("the unsealed measurement has left no rate: run it first, or give one with -rate")
}

// sealedArgs are those of `mrgc up`: the engines are as in the table in clear.
func sealedArgs(c sealedContender, s scenario) []string {
	p := profile()
	args := []string{
		"--ask=false", "--regions", string(rig.Region), "--instances", strconv.Itoa(engineCount),
		"--policy", c.policy.String(), "--engine", "sim", "--model-name", rig.Model,
		"--sim-profile", p.Name, "--sim-slots", strconv.Itoa(p.MaxSequences), "--sim-kv-blocks", strconv.Itoa(p.KVBlocks),
	}
	for i := range engineCount {
		faults := faultsOf(i, s)
		if faults.Slowness > 0 {
			args = append(args, "--sim-slow", fmt.Sprintf("%s=%g", rig.InstanceID(i), faults.Slowness))
		}
		if faults.FailShare > 0 {
			args = append(args, "--sim-fail", fmt.Sprintf("%s=%g", rig.InstanceID(i), faults.FailShare))
		}
	}
	return args
}

// measureSealed runs one contender in a cluster of its own.
func measureSealed(ctx context.Context, c sealedContender, s scenario, requests []request) (r sealedRun, err error) {
	up, err := cluster.Start(ctx, sealedArgs(c, s)...)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, up.Stop()) }()
	tenant, f, err := sealingFront(ctx, up, c.recipients)
	if err != nil {
		return r, err
	}
	defer tenant.CloseIdleConnections()
	// Recipients are fetched and verified, and connections made, before it counts.
	hello := request{messages: []message{{"user", "hello"}}, outputTokens: 1}
	if _, err := f.Ask(ctx, hello.sent()); err != nil {
		return r, fmt.Errorf("the first sealed request: %w", err)
	}
	if c.silent {
		if err := up.Signal("router", syscall.SIGSTOP); err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, up.Signal("router", syscall.SIGCONT)) }()
	}
	r = sealedRun{scenario: s.name, contender: c}
	before, err := readMeters(up, tenant)
	if err != nil {
		return r, err
	}
	outcomes := play(ctx, f, requests)
	if ctx.Err() != nil {
		return r, ctx.Err()
	}
	after, err := readMeters(up, tenant)
	if err != nil {
		return r, err
	}
	r.count(outcomes)
	r.between(before, after)
	return r, nil
}

// sealingFront is a tenant's program with package client in it.
func sealingFront(ctx context.Context, up *cluster.Cluster, recipients int) (*client.Client, rig.Front, error) {
	env, err := up.Env()
	if err != nil {
		return nil, rig.Front{}, err
	}
	config, err := up.ClientConfig()
	if err != nil {
		return nil, rig.Front{}, err
	}
	config.Recipients = recipients
	key, err := credential.Parse(env["OPENAI_API_KEY"])
	if err != nil {
		return nil, rig.Front{}, err
	}
	if err := awaitOffer(ctx, &config, &key); err != nil {
		return nil, rig.Front{}, err
	}
	tenant, err := client.New(config)
	return tenant, rig.Front{
		Client: &http.Client{Transport: tenant}, URL: "https://mrgc/v1/chat/completions",
		Header: func(rig.Request) http.Header {
			return http.Header{"Authorization": {"Bearer " + env["OPENAI_API_KEY"]}}
		},
	}, err
}

// awaitOffer waits until the cluster offers as many recipients as the client
// seals to. A router that has just started knows some instances before others,
// and a client keeps what it was offered for a while.
func awaitOffer(ctx context.Context, config *client.Config, key *credential.Key) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	asking := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: config.RootCAs, MinVersion: tls.VersionTLS13}}}
	defer asking.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet,
			fmt.Sprintf("%s%s?model=%s&n=%d", config.Endpoints[0], api.PathKeys, rig.Model, config.Recipients), nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+string(key.EdgeToken()))
		req.Header.Set(api.HeaderTenant, key.Tenant())
		if resp, err := asking.Do(req); err == nil {
			var offer api.Recipients
			err = json.NewDecoder(resp.Body).Decode(&offer)
			_ = resp.Body.Close()
			if err == nil && len(offer.Recipients) == config.Recipients {
				return nil
			}
		}
		if !rig.SleepUntil(ctx, time.Now().Add(50*time.Millisecond)) {
			return fmt.Errorf("the cluster does not offer %d recipients: %w", config.Recipients, ctx.Err())
		}
	}
}

// meters are counters that only grow.
type meters struct {
	busy, total   int64              // the machine's ticks
	programs      map[string]float64 // processor time, ms
	queried, hit  float64            // tokens of prompts, by the engines
	sent, relayed float64            // requests, by the parents
	tenant        client.Stats
}

func readMeters(up *cluster.Cluster, tenant *client.Client) (m meters, err error) {
	if m.busy, m.total, err = rig.MachineTime(); err != nil {
		return m, err
	}
	times, err := up.ProcessorTime()
	if err != nil {
		return m, err
	}
	m.programs = map[string]float64{}
	for program, used := range times {
		m.programs[program] = used.Seconds() * 1e3
	}
	sockets, err := up.EngineSockets()
	if err != nil {
		return m, err
	}
	for _, socket := range sockets {
		page, err := get("http://engine/metrics", func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		})
		if err != nil {
			return m, err
		}
		m.queried += sumOf(page, "vllm:prefix_cache_queries_total")
		m.hit += sumOf(page, "vllm:prefix_cache_hits_total")
	}
	env, err := up.Env()
	if err != nil {
		return m, err
	}
	for name, url := range env {
		if !strings.HasPrefix(name, "MRGC_METRICS_") {
			continue
		}
		page, err := get(url, nil)
		if err != nil {
			return m, err
		}
		m.sent += sumOf(withLabel(page, `to="enclave"`), "mrgc_parent_requests_total")
		m.relayed += sumOf(withLabel(page, `to="peer"`), "mrgc_parent_requests_total")
	}
	m.tenant = tenant.Stats()
	return m, nil
}

// get reads a page of metrics.
func get(url string, dial func(ctx context.Context, network, address string) (net.Conn, error)) ([]byte, error) {
	c := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d", url, resp.StatusCode)
	}
	return io.ReadAll(resp.Body)
}

// withLabel keeps the series that have a label.
func withLabel(metrics []byte, label string) []byte {
	lines := slices.DeleteFunc(bytes.Split(metrics, []byte("\n")), func(line []byte) bool { return !bytes.Contains(line, []byte(label)) })
	return bytes.Join(lines, []byte("\n"))
}

// notOurs are the programs whose processor time is not what routing and sealing
// cost: the engines, and what is idle here.
var notOurs = []string{"engine", "connect", "mrgc up"}

// between takes down what the meters counted.
func (r *sealedRun) between(before, after meters) {
	r.machine = float64(after.busy-before.busy) / float64(after.total-before.total)
	r.hits = (after.hit - before.hit) / (after.queried - before.queried)
	r.relayed = (after.relayed - before.relayed) / (after.sent - before.sent)
	r.resealed = float64(after.tenant.Resealed-before.tenant.Resealed) / float64(after.tenant.Requests-before.tenant.Requests)
	r.programs = map[string]float64{}
	for program, used := range after.programs {
		if slices.Contains(notOurs, program) {
			continue
		}
		r.programs[program] = (used - before.programs[program]) / float64(r.sent)
		r.cpu += r.programs[program]
	}
}

// sealedBook has every sealed run that counts.
type sealedBook struct {
	options options
	runs    []sealedRun
	void    int
}

// enter measures a contender once, or twice if the first run is void.
func (b *sealedBook) enter(ctx context.Context, c sealedContender, s scenario, seed uint64, requests []request) error {
	for range 2 {
		r, err := measureSealed(ctx, c, s, requests)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
		r.seed = seed
		say("%-10s seed %d  %-38s TTFT p50 %6.0f  p90 %6.0f  p99 %6.0f ms  %d of %d failed  %3.0f %% cached  %.2f %% relayed  %.2f %% resealed  cpu %.2f ms  machine %2.0f %%  lag %v",
			s.name, seed, c.name(), r.first.P50, r.first.P90, r.p99, r.failed, r.sent, 100*r.hits, 100*r.relayed, 100*r.resealed, r.cpu, 100*r.machine, r.lag)
		why := r.void()
		if why == "" {
			b.runs = append(b.runs, r)
			return nil
		}
		b.void++
		say("  void: %s", why)
	}
	return nil
}

func (b *sealedBook) write(cut error) error {
	if len(b.runs) == 0 {
		return nil
	}
	r := b.result()
	if cut != nil {
		r.Notes = append(r.Notes, "The benchmark was cut short: "+cut.Error()+".")
	}
	r.Print(os.Stdout)
	return r.Write()
}
