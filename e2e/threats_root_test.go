package e2e_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/seal"
)

// heldEngine answers with a stream whose events all hold a marker, and which ends
// when it is told to.
type heldEngine struct {
	*toldEngine
	answered string
	reached  atomic.Int64 // requests whose first event has left
	pace     atomic.Int64 // nanoseconds between two events; 0: none comes after the first

	mu    sync.Mutex
	leave chan struct{} // guarded by mu: closed when streams are to end
}

func newHeldEngine(answered string) *heldEngine {
	e := &heldEngine{toldEngine: newToldEngine(), answered: answered, leave: make(chan struct{})}
	e.does(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		leave := e.leave
		e.mu.Unlock()
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		control := http.NewResponseController(w)
		say := func(text string) {
			_, _ = io.WriteString(w, "data: "+text+"\n\n")
			_ = control.Flush() // who has gone reads nothing
		}
		say(`{"choices":[{"delta":{"content":"` + answered + `"}}]}`)
		e.reached.Add(1)
		for over := false; !over; {
			pause := time.Duration(e.pace.Load())
			if pause > 0 {
				say(`{"choices":[{"delta":{"content":"` + answered + `"}}]}`)
			}
			select {
			case <-leave:
				over = true
			case <-r.Context().Done():
				return
			case <-time.After(max(pause, time.Millisecond)):
			}
		}
		say("[DONE]")
	})
	return e
}

// release ends the streams that run.
func (e *heldEngine) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.leave)
	e.leave = make(chan struct{})
}

// rootAttacker has root on the instances. loot is what it is after.
type rootAttacker struct {
	*forger
	c      *cluster
	engine *heldEngine
	loot   loot
	asked  string
}

// outside are the processes that must see nothing: relay, Envoy, and the control
// plane.
func (a *rootAttacker) outside() map[string]int {
	GinkgoHelper()
	pids := map[string]int{"mrgc up": a.c.session.Command.Process.Pid}
	for name, pid := range a.c.pids() {
		for _, prefix := range []string{"parent-", "envoy-", "router-", "controller"} {
			if strings.HasPrefix(name, prefix) {
				pids[name] = pid
			}
		}
	}
	for _, needed := range []string{"parent-use1-0", "parent-use1-1", "envoy-use1", "router-use1", "controller-use1"} {
		Expect(pids).To(HaveKey(needed))
	}
	return pids
}

// named are the children whose names begin with a prefix.
func (a *rootAttacker) named(prefix string) (pids []int) {
	GinkgoHelper()
	for name, pid := range a.c.pids() {
		if strings.HasPrefix(name, prefix) {
			pids = append(pids, pid)
		}
	}
	Expect(pids).NotTo(BeEmpty(), prefix)
	return pids
}

// streams has n requests answered, by all instances, up to their first event, and
// gives what ends them all well.
func (a *rootAttacker) streams(ctx context.Context, n int) (end func()) {
	GinkgoHelper()
	before := a.engine.reached.Load()
	var answers sync.WaitGroup
	for i := range n {
		sealed := a.seal([]byte(fmt.Sprintf(`{"model":%q,"stream":true,"messages":[{"role":"user","content":"%s %d"}]}`, a.model, a.asked, i)),
			func(r *seal.Request) { r.Affinity = "" })
		answers.Go(func() {
			defer GinkgoRecover()
			status, body := a.send(ctx, a.letter(sealed)).opened(sealed)
			Expect(status).To(Equal(http.StatusOK), "%s", body)
			Expect(string(body)).To(And(ContainSubstring(a.engine.answered), ContainSubstring("[DONE]")))
		})
	}
	Eventually(ctx, a.engine.reached.Load, "20s").Should(Equal(before + int64(n)))
	return func() {
		GinkgoHelper()
		a.engine.release()
		answers.Wait()
	}
}

// nothing wants no hit, and that something was looked at.
func (a *rootAttacker) nothing(where string, f found, atLeast int64) {
	GinkgoHelper()
	Expect(f.names).To(BeEmpty(), where)
	Expect(f.bytes).To(BeNumerically(">=", atLeast), "%s: nothing was looked at", where)
}

var _ = Describe("Somebody with root on an instance", Ordered, Label("threats"), func() {
	a := &rootAttacker{asked: "asked" + rand.Text()}
	var scanned atomic.Int64
	BeforeAll(func(ctx SpecContext) {
		if os.Geteuid() != 0 {
			Skip("it takes root to be an attacker with root")
		}
		a.engine = newHeldEngine("answered" + rand.Text())
		a.c = startCluster("--regions", "use1", "--instances", "2", "--engine-url", a.engine.server.URL, "--model-name", "told", "--ask=false", "--accelerator")
		a.forger = a.c.newForger(ctx)
		Expect(a.recipients).To(HaveLen(2))
		secret := string(a.key.CacheSecret())
		a.loot = loot{"the cache secret": []byte(secret), "the enclave token": a.key.EnclaveToken()}.
			also("a prompt", a.asked).also("an answer", a.engine.answered)
		// The API key itself is in `mrgc up`, which made it, alone.
	})

	It("finds neither prompts, answers nor keys in the memory of parent, Envoy, router and controller, and both in the enclave's and the guard's", func(ctx SpecContext) {
		end := a.streams(ctx, 8)
		base := a.c.connectWithKey(ctx, "use1")
		byKMS := make(chan int, 1)
		go func() {
			defer GinkgoRecover()
			status, _ := a.c.chat(ctx, http.DefaultClient, base, a.asked)
			byKMS <- status
		}()
		Eventually(ctx, a.engine.reached.Load, "20s").Should(BeNumerically(">=", 9))
		for name, pid := range a.outside() {
			looked := a.loot
			if name == "mrgc up" { // it made the tenant, and its keys
				looked = loot{}.also("a prompt", a.asked).also("an answer", a.engine.answered)
			}
			f := looked.memoryOf(pid)
			a.nothing(name, f, 4<<20)
			scanned.Add(f.bytes)
		}
		for _, holder := range []string{"enclave-", "guard-"} {
			var all found
			for _, pid := range a.named(holder) {
				f := a.loot.memoryOf(pid)
				all.add(f.names, int(f.bytes))
			}
			Expect(all.names).To(ContainElements("a prompt", "an answer"), "%s: the same scan finds them where they are known to be", holder)
		}
		end()
		Expect(<-byKMS).To(Equal(http.StatusOK))
		for name, pid := range a.outside() {
			if name != "mrgc up" {
				a.nothing(name+", afterwards", a.loot.memoryOf(pid), 4<<20)
			}
		}
		AddReportEntry("memory", fmt.Sprintf("%d MiB of %d processes looked through while 9 requests ran: no hit", scanned.Load()>>20, len(a.outside())))
	}, NodeTimeout(2*time.Minute))

	It("finds nothing in their core dumps, and both in the guard's", Label("slow"), func(ctx SpecContext) {
		if _, err := exec.LookPath("gdb"); err != nil {
			Skip("no gdb, which writes them: core dumps are not looked at (the same memory is, by the spec before)")
		}
		end := a.streams(ctx, 4)
		var all found
		for _, pid := range a.named("guard-") { // a debugger stops what it dumps: others would break the streams
			all.add(a.loot.coreOf(pid).names, 0)
		}
		Expect(all.names).To(ContainElements("a prompt", "an answer"))
		end()
		for _, name := range []string{"parent-use1-0", "envoy-use1", "router-use1"} {
			began := time.Now()
			f := a.loot.coreOf(a.c.pids()[name])
			a.nothing(name, f, 1<<20)
			AddReportEntry("core dump", fmt.Sprintf("%s: %d MiB in %s", name, f.bytes>>20, since(began)))
		}
	}, NodeTimeout(4*time.Minute))

	It("finds nothing in their sockets and on the wire, and both where the engine is spoken to", func(ctx SpecContext) {
		engine, err := url.Parse(a.engine.server.URL)
		Expect(err).NotTo(HaveOccurred())
		port, err := strconv.Atoi(engine.Port())
		Expect(err).NotTo(HaveOccurred())
		wire := a.loot.listen(port)
		a.engine.pace.Store(int64(200 * time.Microsecond))
		defer a.engine.pace.Store(0)
		end := a.streams(ctx, 8)

		By("stopping parents and Envoys in the middle of it, so that their sockets fill")
		var queued found
		for round := 0; round < 20 || queued.bytes < 10<<10 && round < 1000; round++ {
			for _, who := range []string{"parent-", "envoy-"} {
				a.c.signal(who, syscall.SIGSTOP)
				for _, pid := range a.named(who) {
					f := a.loot.queuesOf(pid)
					queued.add(f.names, int(f.bytes))
				}
				a.c.signal(who, syscall.SIGCONT)
			}
		}
		a.nothing("what waits in sockets of parents and Envoys", queued, 10<<10)

		By("stopping the guards, whose connection to the engine is in clear")
		a.c.signal("guard-", syscall.SIGSTOP)
		DeferCleanup(func() { a.c.signal("guard-", syscall.SIGCONT) })
		Eventually(ctx, func() (names []string) {
			for _, pid := range a.named("guard-") {
				names = append(names, a.loot.queuesOf(pid).names...)
			}
			return names
		}, "10s").Should(ContainElement("an answer"), "the same look finds it where it is known to be")
		a.c.signal("guard-", syscall.SIGCONT)
		end()

		there, other := wire.sofar()
		Expect(there.names).To(ContainElements("a prompt", "an answer"), "the wire is listened to")
		a.nothing("the wire, but for the engine's", other, 100<<10)
		AddReportEntry("sockets", fmt.Sprintf("%d KiB waiting in sockets and %d KiB on the wire looked through: no hit", queued.bytes>>10, other.bytes>>10))
	}, NodeTimeout(time.Minute))

	It("finds nothing in files, logs, arguments, environments and admin pages", func(ctx SpecContext) {
		a.streams(ctx, 4)()
		looked := loot{"the enclave token": a.key.EnclaveToken()}.also("a prompt", a.asked).also("an answer", a.engine.answered)
		f, files := looked.filesIn(a.c.stateDir)
		a.nothing("files", f, 10<<10)
		Expect(files).To(BeNumerically(">=", 15))
		for name, pid := range a.outside() {
			for _, of := range []string{"cmdline", "environ"} {
				content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), of))
				Expect(err).NotTo(HaveOccurred())
				Expect(looked.in(content)).To(BeEmpty(), "%s of %s", of, name)
			}
		}
		pages, left := a.adminPages(ctx)
		read, bytes := 0, 0
		for _, page := range pages {
			status, content := fetchPage(ctx, page)
			read, bytes = read+1, bytes+len(content)
			Expect(status).To(BeNumerically("<", 500), page)
			Expect(looked.in(content)).To(BeEmpty(), page)
		}
		Expect(read).To(BeNumerically(">=", 30))
		AddReportEntry("admin pages", fmt.Sprintf("%d pages, %d KiB, looked through: no hit; left out, as asking for them changes something or says nothing: %s",
			read, bytes>>10, strings.Join(left, ", ")))

		planted := filepath.Join(a.c.stateDir, "logs", "planted.log")
		Expect(os.WriteFile(planted, []byte("said "+a.asked), 0o600)).To(Succeed())
		DeferCleanup(os.Remove, planted)
		f, _ = looked.filesIn(a.c.stateDir)
		Expect(f.names).To(ConsistOf("a prompt in " + planted))
	}, NodeTimeout(time.Minute))
})
