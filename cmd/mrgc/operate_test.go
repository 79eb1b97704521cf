package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/decision"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/operator"
)

// decided is a decision between two instances, the first of which is idle.
func decided() decision.Record {
	at := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	r := decision.Record{At: at, EnvoyID: "envoy-1", Tenant: "acme", Config: "c0ffee", FleetAt: at, Request: routing.Request{
		ID: "0123456789abcdef0123456789abcdef", Model: "smol", Recipients: []string{"k0", "k1", "k2"}, Regions: []fleet.Region{"use1"},
	}}
	for i := range 3 {
		r.Candidates = append(r.Candidates, routing.Candidate{
			Instance: &fleet.Instance{
				ID: fmt.Sprintf("use1-%d", i), Region: "use1", Models: []string{"smol"}, KeyIDs: []string{fmt.Sprintf("k%d", i)},
				Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: 4}, HeartbeatAt: at,
			},
			Ready: true, InFlight: 3 * i, InFlightTokens: 3000 * i,
		})
	}
	r.Candidates[2].Ready, r.Candidates[2].Instance.Draining = false, true
	r.Decision = routing.Pick(r.Request, r.Candidates)
	return r
}

// admin is a router's admin that has one decision on record.
func admin() string {
	GinkgoHelper()
	pages := http.NewServeMux()
	show := func(path string, page any) {
		pages.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(page)
		})
	}
	type m = map[string]any
	show("/decisions/"+decided().Request.ID, m{"region": "use1", "decisions": []decision.Explained{decision.Explain(decided(), decided().At.Add(12*time.Second))}})
	show("/decisions/", m{"region": "use1", "kept": 7, "oldest_age_seconds": 93.0, "decisions": []any{}})
	show("/ready", m{"ready": true})
	show("/peers", m{"peers": []m{{"address": "10.0.0.2:9001", "state": "connected"}}})
	show("/config", m{"version": "c0ffee", "age_seconds": 60.0, "refused": "mrgc.yaml:3: no"})
	show("/scores", m{"region": "use1", "instances": []m{{"instance": "use1-0", "mode": "nitro", "score": 87, "terms": m{"queue": 37.5, "latency": 30, "health": 20}, "in_flight": 1, "report": "fresh", "report_age_seconds": 0.04}}})
	show("/fleet", m{"instances": []m{
		{"id": "use1-0", "region": "use1", "models": []string{"smol"}, "versions": m{"smol": "2"}, "ready": true, "enclave_healthy": true, "engine_healthy": true, "reason": "model's files: gone", "score": 87, "weight": 85},
		{"id": "use1-1", "region": "use1", "models": []string{"smol", "other"}, "versions": m{"smol": "2"}, "draining": true, "enclave_healthy": true, "engine_healthy": true, "score": 90},
	}})
	show("/releases", m{"version": 3, "instances": []m{{"instance": "use1-0", "trusted": true, "release": "2026-11", "version": 8}, {"instance": "use1-1", "trusted": true, "release": "2026-10", "version": 7}}})
	show("/envoys", m{"envoys": []m{
		{"node": "envoy-0", "region": "use1", "connected_seconds": 60, "types": []m{{"type": "Cluster", "state": "SYNCED", "acked_age_seconds": 5.0}, {"type": "Listener", "state": "REJECTED", "nack": "no\x1b[2J good", "nack_age_seconds": 3.0}}},
		{"node": "envoy-1", "region": "use1", "state": "STALE", "reason": "Cluster: it has not answered yet", "types": []m{{"type": "Cluster", "state": "STALE"}}},
	}})
	pages.HandleFunc("GET /decisions", func(w http.ResponseWriter, _ *http.Request) { _ = decision.Write(w, decided()) })
	server := httptest.NewServer(pages)
	DeferCleanup(server.Close)
	return server.URL
}

// Routers that whoever runs the tests has in the environment are not asked.
var _ = BeforeEach(func() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, operator.EnvPrefix) {
			GinkgoT().Setenv(name, "")
		}
	}
})

var _ = Describe("mrgc explain", func() {
	It("says in a table who was picked, who came next and why, and who could not serve", func() {
		got := mrgc("explain", decided().Request.ID, "--admin", admin())
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(And(
			ContainSubstring(decided().Request.ID+" of acme for smol, 12s ago"),
			ContainSubstring("picked use1-0"), ContainSubstring("config c0ffee"),
			MatchRegexp(`1 +use1-0 +use1 .* first\n`),
			MatchRegexp(`2 +use1-1 .* first token predicted \S+ later`),
			MatchRegexp(`- +use1-2 .* not ready: draining\n`),
		))
	})

	It("gives programs all of it", func() {
		got := mrgc("explain", "-o", "json", decided().Request.ID, "--admin", admin())
		Expect(got.err).NotTo(HaveOccurred())
		var found []struct{ Decisions []decision.Explained }
		Expect(json.Unmarshal([]byte(got.stdout), &found)).To(Succeed())
		Expect(found[0].Decisions[0].RunnerUp).To(Equal("use1-1"))
	})

	It("says what to do when nobody knows the request", func() {
		got := mrgc("explain", "unknown", "--admin", admin())
		Expect(got.err).To(MatchError(And(ContainSubstring(`no decision over request "unknown"`), ContainSubstring("--admin"), ContainSubstring("last 7 decisions, of the last 1m33s"))))
	})

	It("asks the routers of the environment", func() {
		GinkgoT().Setenv("MRGC_ADMIN_USE1", admin())
		Expect(mrgc("explain", decided().Request.ID).stdout).To(ContainSubstring("picked use1-0"))
	})
})

var _ = Describe("mrgc models", func() {
	It("adds up the instances of each version, in order", func() {
		got := mrgc("models", "--admin", admin())
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`MODEL +VERSION .*\nother +- +use1 +0 of 1 +1\nsmol +2 +use1 +1 of 2 +1\n`))
		got = mrgc("models", "--admin", admin(), "-o", "json")
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchJSON(`[{"model":"other","region":"use1","ready":0,"draining":1,"instances":1},
			{"model":"smol","version":"2","region":"use1","ready":1,"draining":1,"instances":2}]`))
	})

	It("fails when no router answers", func() {
		Expect(mrgc("models", "--admin", "http://127.0.0.1:1").err).To(MatchError(ContainSubstring("no router answers")))
	})
})

var _ = Describe("mrgc status", func() {
	It("shows an enclave's release that is refused, and where nobody follows a manifest", func() {
		var out bytes.Buffer
		status := operator.Status{Instances: []operator.InstanceStatus{{ID: "use1-0", Release: &operator.Release{Error: "below the minimum"}}, {ID: "use1-1"}}}
		Expect(status.Print(&out)).To(Succeed())
		Expect(out.String()).To(And(MatchRegexp(`use1-0 +- +REFUSED `), MatchRegexp(`use1-1 +- +- +NOT READY`)))
	})

	It("shows routers, instances with their scores' terms, and Envoys with ages and reasons", func() {
		got := mrgc("status", "--admin", admin())
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(And(
			MatchRegexp(`use1 +http://\S+ +ready +1 of 1 heard +c0ffee for 1m0s, REFUSES THE FILE: mrgc.yaml:3: no`),
			MatchRegexp(`use1-1 +- +7 \(others: 8\) +NOT READY: draining`),
			MatchRegexp(`use1-0 +nitro +8 +ready, but model's files: gone +87 +38 +30 +20 +1 +fresh 40ms +\S+ +0% +85`),
			MatchRegexp(`envoy-0 +REJECTED 3s ago +1m0s +5s ago +Listener: no \[2J good`),
			MatchRegexp(`envoy-1 +STALE .*Cluster: it has not answered yet`),
		))
		Expect(got.stdout).NotTo(ContainSubstring("\x1b"))
	})

	It("gives programs all of it", func() {
		var status struct {
			Instances []struct{ ID string }
			Envoys    []struct {
				State string
				Types []map[string]any
			}
		}
		Expect(json.Unmarshal([]byte(mrgc("status", "-o", "json", "--admin", admin()).stdout), &status)).To(Succeed())
		Expect(status.Instances).To(HaveLen(2))
		Expect(status.Envoys[0].State).To(Equal("REJECTED"))
		Expect(status.Envoys[0].Types[1]).To(HaveKey("nack"))
	})

	It("fails when no router answers, and shows why", func() {
		got := mrgc("status", "--admin", "http://127.0.0.1:1")
		Expect(got.err).To(MatchError(ContainSubstring("no router answers")))
		Expect(got.stdout).To(ContainSubstring("does not answer"))
	})

	It("goes on until it is told to end", func(ctx SpecContext) {
		shown := process(ctx, "status", "--watch", "10ms", "--admin", admin())
		out, err := shown.StdoutPipe()
		Expect(err).NotTo(HaveOccurred())
		Expect(shown.Start()).To(Succeed())
		var all bytes.Buffer
		buf := make([]byte, 4096)
		for strings.Count(all.String(), "ENVOY") < 2 {
			n, err := out.Read(buf)
			Expect(err).NotTo(HaveOccurred())
			all.Write(buf[:n])
		}
		Expect(shown.Process.Signal(os.Interrupt)).To(Succeed())
		go func() { _, _ = all.ReadFrom(out) }()
		Expect(shown.Wait()).To(Succeed())
	}, NodeTimeout(20*time.Second))
})

var _ = Describe("mrgc replay", func() {
	file := func(change func(string) string) string {
		GinkgoHelper()
		var trace bytes.Buffer
		Expect(decision.Write(&trace, decided())).To(Succeed())
		path := filepath.Join(GinkgoT().TempDir(), "trace.jsonl")
		Expect(os.WriteFile(path, []byte(change(trace.String())), 0o600)).To(Succeed())
		return path
	}
	as := func(s string) string { return s }

	It("is exact under the policy that decided", func() {
		got := mrgc("replay", file(as), "--policy", "gate-then-load")
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(And(ContainSubstring("1 were made by that policy: 1 come out the same"), ContainSubstring("0 (0.0%) would have gone elsewhere")))
	})

	It("fails when it is not", func() {
		got := mrgc("replay", file(func(s string) string {
			return strings.Replace(s, `"order":["use1-0","use1-1"]`, `"order":["use1-1","use1-0"]`, 1)
		}))
		Expect(got.err).To(MatchError(And(ContainSubstring("1 of 1 decisions come out otherwise"), ContainSubstring(decided().Request.ID))))
		Expect(got.stdout).To(ContainSubstring("INSTANCE"))
	})

	It("shows what another policy would have done", func() {
		got := mrgc("replay", file(as), "--policy", "round-robin")
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(And(MatchRegexp(`use1-0 +1 +0 +-1`), MatchRegexp(`use1-1 +0 +1 +\+1`), MatchRegexp(`mean +\S+ +\S+ +\+\d+\.\d ms`)))
	})

	It("reads what routers remember", func() {
		got := mrgc("replay", "--from-admin", "--admin", admin(), "-o", "json")
		Expect(got.err).NotTo(HaveOccurred())
		var result decision.Result
		Expect(json.Unmarshal([]byte(got.stdout), &result)).To(Succeed())
		Expect(result.Decisions).To(Equal(1))
	})

	DescribeTable("refuses", func(reason string, args ...string) {
		got := mrgc(append([]string{"replay"}, args...)...)
		Expect(got.err).To(MatchError(ContainSubstring(reason)))
		Expect(got.stdout).To(BeEmpty())
	},
		Entry("nothing to replay", "give a trace file"),
		Entry("two things to replay", "give a trace file", "x", "--from-admin"),
		Entry("a policy that does not exist", `policy "best"`, "x", "--policy", "best"),
		Entry("a file that does not exist", "nonexistent", "/nonexistent"),
		Entry("a form that does not exist", `--output "xml"`, "x", "-o", "xml"),
		Entry("no routers", "source .mrgc/env", "--from-admin"),
		Entry("a router that is none", "want http://host:port", "--from-admin", "--admin", "localhost:1"),
	)

	It("names the line that is no decision", func() {
		got := mrgc("replay", file(func(s string) string { return s + "{}\n" }))
		Expect(got.err).To(MatchError(And(ContainSubstring("trace.jsonl"), ContainSubstring("line 2"))))
	})
})

var _ = Describe("A shell", func() {
	DescribeTable("completes", func(want string, words ...string) {
		got := mrgc(append([]string{"__complete"}, words...)...)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(ContainSubstring(want))
	},
		Entry("commands", "explain\t", "ex"),
		Entry("a replay's policies", "power-of-two\n", "replay", "--policy", ""),
		Entry("a cluster's policy", "power-of-two\n", "up", "--policy", ""),
		Entry("forms", "json\n", "status", "-o", ""),
	)

	DescribeTable("is told how", func(shell string) {
		got := mrgc("completion", shell)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(ContainSubstring("mrgc"))
	}, Entry(nil, "bash"), Entry(nil, "zsh"), Entry(nil, "fish"))
})
