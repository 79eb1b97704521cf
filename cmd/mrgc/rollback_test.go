package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/router"
)

const onTrial = `regions: [{name: use1, aws_region: us-east-1}]
models:
  - name: m # of many
    auto_rollback: true
    versions: [{name: "1", weight: 600}, {name: "2", weight: 300}, {name: "3", weight: 100}]
`

var _ = Describe("A roll-back", func() {
	var path string
	judged := routing.Split{{Name: "1", Weight: 600}, {Name: "2", Weight: 300}, {Name: "3", Weight: 100}}
	BeforeEach(func() {
		path = filepath.Join(GinkgoT().TempDir(), "mrgc.yaml")
		Expect(os.WriteFile(path, []byte(onTrial), 0o600)).To(Succeed())
	})
	split := func() routing.Split {
		GinkgoHelper()
		cluster, err := config.Load(path)
		Expect(err).NotTo(HaveOccurred())
		return cluster.Splits()["m"]
	}
	back := func() func(router.Rollback) error { return rollBack(path, "use1", slog.New(slog.DiscardHandler)) }

	It("takes a version's requests away, and is on record", func() {
		Expect(back()(router.Rollback{Model: "m", Version: "2", Split: judged, Reason: "error_rate: it fails"})).To(Succeed())
		Expect(split()).To(Equal(routing.Split{{Name: "1", Weight: 857}, {Name: "2", Weight: 0}, {Name: "3", Weight: 143}}))
		done, err := recorded(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(done).To(HaveExactElements(And(HaveField("Region", BeEquivalentTo("use1")), HaveField("Version", "2"), HaveField("Reason", "error_rate: it fails"), HaveField("Weights", judged))))
	})

	It("happens once, however many routers want it at a time", func() {
		var did, late atomic.Int64
		var routers sync.WaitGroup
		for range 8 {
			routers.Go(func() {
				defer GinkgoRecover()
				switch err := back()(router.Rollback{Model: "m", Version: "3", Split: judged}); err {
				case nil:
					did.Add(1)
				default:
					Expect(err).To(MatchError(router.ErrDivided))
					late.Add(1)
				}
			})
		}
		routers.Wait()
		Expect(did.Load()).To(BeEquivalentTo(1))
		Expect(late.Load()).To(BeEquivalentTo(7))
		Expect(recorded(path)).To(HaveLen(1))
	})

	It("does not happen once an operator has changed the weights", func() {
		Expect(mrgc("canary", "set", "m", "2", "40%", "--config", path).err).NotTo(HaveOccurred())
		before := split()
		Expect(back()(router.Rollback{Model: "m", Version: "2", Split: judged})).To(MatchError(router.ErrDivided))
		Expect(split()).To(Equal(before))
		Expect(recorded(path)).To(BeEmpty())
	})

	It("fails where the file cannot be written, and changes nothing", func() {
		Expect(os.WriteFile(path, []byte("models: []\n"), 0o600)).To(Succeed())
		Expect(back()(router.Rollback{Model: "m", Version: "2", Split: judged})).To(MatchError(ContainSubstring("want at least one")))
		Expect(recorded(path)).To(BeEmpty())
	})
})

var _ = Describe("mrgc canary status", func() {
	var path string
	BeforeEach(func() {
		path = filepath.Join(GinkgoT().TempDir(), "mrgc.yaml")
		Expect(os.WriteFile(path, []byte(onTrial), 0o600)).To(Succeed())
	})
	// judging is a router's admin that has version 2 on trial.
	judging := func(verdict string, evidence float64, requests, failed int) string {
		GinkgoHelper()
		type m = map[string]any
		times := func(n int, log float64) m {
			return m{"64": m{"ttft": n, "log_ttft": log, "per_token": 0, "log_per_token": 0}}
		}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			Expect(r.URL.Path).To(Equal("/canary"))
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(m{"trials": []m{{
				"model": "m", "version": "2", "present": "1", "auto_rollback": true, "verdict": verdict, "signal": "error_rate",
				"evidence": m{"error_rate": evidence, "time_to_first_token": -0.2}, "compared": 77,
				"versions": m{"1": m{"requests": 2 * requests, "failed": 0, "by_size": times(100, 0)}, "2": m{"requests": requests, "failed": failed, "by_size": times(100, 18.2321557)}},
			}}})
		}))
		DeferCleanup(server.Close)
		return server.URL
	}

	It("shows what the routers have found out, together", func() {
		got := mrgc("canary", "status", "--config", path, "--admin", judging("no worse", 0.4, 50, 1), "--admin", judging("no worse", 0.5, 150, 3))
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(And(
			MatchRegexp(`m +1 +60 % +400 +0\.0 % +x 1 +x 1 +- +- +present\n`),
			MatchRegexp(`m +2 +30 % +200 +2\.0 % +x 1\.20 +- +0\.50 of 1 +77 +no worse\n`),
			MatchRegexp(`m +3 +10 % +- `),
		))
		got = mrgc("canary", "status", "--config", path, "--admin", judging("worse", 1.1, 50, 10), "-o", "json")
		var all []weighted
		Expect(json.Unmarshal([]byte(got.stdout), &all)).To(Succeed())
		Expect(all[1].Trial).To(And(HaveField("Verdict", "worse"), HaveField("Requests", 50), HaveField("Failed", 10)))
	})

	It("says what is worse, and what was rolled back and why", func() {
		Expect(mrgc("canary", "status", "--config", path, "--admin", judging("worse", 1.1, 50, 10)).stdout).To(MatchRegexp(`WORSE by error_rate\n`))
		Expect(rollBack(path, "use2", slog.New(slog.DiscardHandler))(router.Rollback{
			Model: "m", Version: "2", Split: routing.Split{{Name: "1", Weight: 600}, {Name: "2", Weight: 300}, {Name: "3", Weight: 100}}, Reason: "it fails",
		})).To(Succeed())
		got := mrgc("canary", "status", "--config", path, "--admin", judging("worse", 1.1, 50, 10))
		Expect(got.stdout).To(MatchRegexp(`m +2 +0 %, withdrawn +.*rolled back \S+ by a router of use2: it fails\n`))
	})

	It("shows the weights where no router can be asked, and says so", func() {
		got := mrgc("canary", "status", "--config", path)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(Equal("MODEL  VERSION  SHARE\nm      1        60 %\nm      2        30 %\nm      3        10 %\n"))
		Expect(got.stderr).To(ContainSubstring("source .mrgc/env"))
		Expect(mrgc("canary", "status", "--config", path, "--admin", "http://127.0.0.1:1").stderr).To(ContainSubstring("does not answer"))
	})
})
