package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
	"github.com/mrgc/mrgc/internal/state/schema"
)

var _ = Describe("mrgc wash show", func() {
	var address string
	// wholeSteps are those of a wash that passed, whose first and last were these.
	wholeSteps := func(first, last state.WashStep) (steps []state.WashStep) {
		for _, name := range state.WashSteps() {
			steps = append(steps, state.WashStep{Name: name, Passed: true, Detail: "seen"})
		}
		first.Name, last.Name = steps[0].Name, steps[len(steps)-1].Name
		steps[0], steps[len(steps)-1] = first, last
		return steps
	}
	at := time.Date(2026, time.March, 14, 9, 26, 53, 589000000, time.UTC)
	BeforeEach(func(ctx SpecContext) {
		address = "sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db")
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		defer store.Close()
		for i, w := range []state.Wash{
			{Passed: true, Steps: wholeSteps(state.WashStep{Duration: time.Second, Passed: true, Detail: "planted"}, state.WashStep{Duration: 500 * time.Millisecond, Passed: true, Detail: "gone"})},
			{Reason: "check_model: another file", Steps: []state.WashStep{{Name: "check_model", Detail: "another file"}}},
		} {
			w.Region, w.Trigger, w.StartedAt = "use1", "operator", at.Add(time.Duration(i)*time.Hour)
			_, err := state.WashTable(store).Put(ctx, state.Record[state.Wash]{Key: state.WashKey("use1-0", w.StartedAt), Value: w})
			Expect(err).NotTo(HaveOccurred())
		}
	})

	It("shows an instance's washes, the newest first", func() {
		got := mrgc("wash", "show", "use1-0", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`(?s)T10:26:53.* operator +0s +FAILED: check_model: another file\n.*T09:26:53.* operator +1.5s +passed`))
		got = mrgc("wash", "show", "use1-0", "--state", address, "--last", "1", "-o", "json")
		var washes []recordedWash
		Expect(json.Unmarshal([]byte(got.stdout), &washes)).To(Succeed())
		Expect(washes).To(HaveExactElements(HaveField("ID", "use1-0/2026-03-14T10:26:53.589000Z")))
	})

	DescribeTable("shows one that has not ended", func(ctx SpecContext, w state.Wash, shown string) {
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		defer store.Close()
		w.Region, w.Trigger, w.StartedAt = "use1", "interval", at
		_, err = state.WashTable(store).Put(ctx, state.Record[state.Wash]{Key: state.WashKey("use1-1", at), Value: w})
		Expect(err).NotTo(HaveOccurred())
		got := mrgc("wash", "show", "use1-1", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`T09:26:53.* interval +- +` + shown + `\n`))
	},
		Entry("because it waits", state.Wash{Open: state.WashWaiting, Reason: "no other instance is ready"}, "waits: no other instance is ready"),
		Entry("because it is under way", state.Wash{Open: state.WashUnderWay}, "under way"),
	)

	It("shows one by its id, step by step", func() {
		got := mrgc("wash", "show", "use1-0/2026-03-14T09:26:53.589000Z", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`(?s)plant_canary +1s +true +planted\n.*\ncheck_canary +500ms +true +gone`))
	})

	It("does not show a row as passed that is not whole, and shows the others", func(ctx SpecContext) {
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		defer store.Close()
		key := state.WashKey("use1-0", at.Add(2*time.Hour))
		_, err = store.Write(ctx, schema.CleanupValidation, state.Write{Key: key, Fields: []byte(`{"region":"use1","trigger":"operator","started_at":"2026-03-14T11:26:53.589Z","passed":true,` +
			`"steps":[{"name":"plant_canary","duration_ns":1,"passed":true,"detail":"planted"}]}`)})
		Expect(err).NotTo(HaveOccurred())
		got := mrgc("wash", "show", "use1-0", "--state", address)
		Expect(got.err).To(MatchError(And(ContainSubstring("use1-0/2026-03-14T11:26:53.589000Z"), ContainSubstring("not whole"))))
		Expect(got.stdout).To(And(ContainSubstring("T09:26:53"), ContainSubstring("T10:26:53"), Not(ContainSubstring("T11:26:53"))))
		got = mrgc("wash", "show", key.Partition+"/"+key.Sort, "--state", address)
		Expect(got.err).To(MatchError(ContainSubstring("not whole")))
		Expect(got.stdout).To(MatchRegexp(`(?s)FAILED: .*not whole.*plant_canary +0s +true +planted`))
	})

	It("says what it does not find, or cannot do", func() {
		Expect(mrgc("wash", "show", "use1-0/never", "--state", address).err).To(MatchError(HavePrefix("no wash use1-0/never is recorded: of use1-0 there are use1-0/2026-03-14T10:26:53.589000Z, use1-0/2026-03-14T09:26:53.589000Z")))
		Expect(mrgc("wash", "show", "use1-0/2026-03-14T09:26:53.589001Z", "--state", address).err).To(MatchError(HaveSuffix("did you mean use1-0/2026-03-14T09:26:53.589000Z?")))
		Expect(mrgc("wash", "show", "use1-7", "--state", address).stdout).To(Equal("no wash of use1-7 is recorded; mrgc status names the instances\n"))
		Expect(mrgc("wash", "show", "use1-0", "--state", address, "--last", "0").err).To(MatchError(ContainSubstring("--last 0")))
		Expect(mrgc("wash", "show", "use1-0", "--state", address, "-o", "xml").err).To(MatchError(ContainSubstring("want table or json")))
	})
})

var _ = Describe("mrgc wash now --wait", func() {
	at := time.Date(2026, time.March, 14, 9, 26, 53, 589000000, time.UTC)
	var address string
	var table state.Table[state.Wash]
	put := func(ctx context.Context, after time.Duration, w state.Wash) {
		GinkgoHelper()
		w.Region, w.Trigger, w.StartedAt = "use1", "operator", at.Add(after)
		_, err := table.Put(ctx, state.Record[state.Wash]{Key: state.WashKey("use1-0", w.StartedAt), Value: w}, state.Anyway())
		Expect(err).NotTo(HaveOccurred())
	}
	whole := func() (steps []state.WashStep) {
		for _, name := range state.WashSteps() {
			steps = append(steps, state.WashStep{Name: name, Passed: true, Detail: "seen"})
		}
		return steps
	}
	BeforeEach(func(ctx SpecContext) {
		address = "sqlite:" + filepath.Join(GinkgoT().TempDir(), "state.db")
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		table = state.WashTable(store)
		put(ctx, 0, state.Wash{Passed: true, Steps: whole()})
	})
	// ordered is a router's admin by which a wash goes as it is told to.
	ordered := func(goes func()) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			goes()
			w.WriteHeader(http.StatusAccepted)
		}))
		DeferCleanup(server.Close)
		return server.URL
	}

	It("shows how the wash went that was ordered, and not the one before", func(ctx SpecContext) {
		got := mrgc("wash", "now", "use1-0", "--wait", "--state", address, "--admin", ordered(func() {
			put(ctx, time.Hour, state.Wash{Passed: true, Steps: whole()})
		}))
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`(?s)use1-0/2026-03-14T10:26:53.* passed.*check_canary +0s +true +seen`))
	})

	It("fails when the wash has, and says what to do", func(ctx SpecContext) {
		got := mrgc("wash", "now", "use1-0", "--wait", "--state", address, "--admin", ordered(func() {
			put(ctx, time.Hour, state.Wash{Reason: "check_model: another file", Steps: []state.WashStep{{Name: "check_model"}}})
		}))
		Expect(got.err).To(MatchError(And(ContainSubstring("check_model: another file"), ContainSubstring("mrgc wash now use1-0 --wait"), ContainSubstring("quarantine"))))
		Expect(got.stdout).To(ContainSubstring("FAILED"))
	})

	It("orders nothing that it could not wait for", func() {
		asked := false
		got := mrgc("wash", "now", "use1-0", "--wait", "--state", "nowhere:", "--admin", ordered(func() { asked = true }))
		Expect(got.err).To(MatchError(ContainSubstring("nothing is ordered")))
		Expect(asked).To(BeFalse())
	})

	It("says how it goes while it waits, and leaves the wash alone when it is told to stop", func(ctx SpecContext) {
		progress := gbytes.NewBuffer()
		waiting, closeStore, err := awaitWash(ctx, address, "use1-0", progress)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(closeStore)
		waiting.every = time.Millisecond
		interrupted, interrupt := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			_, err := waiting.wait(interrupted)
			done <- err
		}()
		Eventually(ctx, progress).Should(gbytes.Say("use1-0: ordered, not recorded yet"))
		put(ctx, time.Hour, state.Wash{Open: state.WashWaiting, Reason: "no other instance is ready"})
		Eventually(ctx, progress).Should(gbytes.Say("use1-0: waits: no other instance is ready"))
		put(ctx, time.Hour, state.Wash{Open: state.WashUnderWay})
		Eventually(ctx, progress).Should(gbytes.Say(`use1-0: under way`))
		Consistently(ctx, done, "100ms").ShouldNot(Receive())
		interrupt()
		Eventually(ctx, done).Should(Receive(MatchError(ContainSubstring("the wash of use1-0 goes on: mrgc wash show use1-0"))))
	}, SpecTimeout(20*time.Second))
})

var _ = Describe("mrgc wash now", func() {
	It("names the instances when there is none of that name", func() {
		pages := http.NewServeMux()
		pages.HandleFunc("POST /instances/{id}/wash", func(w http.ResponseWriter, _ *http.Request) {
			api.Errorf(http.StatusNotFound, "not_found", "no such instance").Write(w)
		})
		known, err := url.Parse(admin())
		Expect(err).NotTo(HaveOccurred())
		pages.Handle("/", httputil.NewSingleHostReverseProxy(known))
		server := httptest.NewServer(pages)
		DeferCleanup(server.Close)
		Expect(mrgc("wash", "now", "use1-9", "--admin", server.URL).err).To(MatchError(HavePrefix("no instance use1-9: did you mean use1-0 or use1-1?")))
		Expect(mrgc("wash", "now", "elsewhere", "--admin", server.URL).err).To(MatchError(HavePrefix("no instance elsewhere: there are use1-0, use1-1")))
	})

	It("asks a router, and the next one when the first does not know", func() {
		var asked []string
		router := func(status int) string {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("Content-Type"))
				if status != http.StatusAccepted {
					api.Errorf(status, "not_found", "no such instance").Write(w)
					return
				}
				w.WriteHeader(status)
			}))
			DeferCleanup(server.Close)
			return server.URL
		}
		lost := router(http.StatusNotFound)
		got := mrgc("wash", "now", "use1-0", "--admin", lost, "--admin", router(http.StatusAccepted))
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(ContainSubstring("a wash of use1-0 is ordered"))
		Expect(asked).To(HaveLen(2))
		Expect(asked).To(HaveEach("POST /instances/use1-0/wash application/json"))
		Expect(mrgc("wash", "now", "use1-0", "--admin", lost).err).To(MatchError(ContainSubstring("no such instance")))
	})
})
