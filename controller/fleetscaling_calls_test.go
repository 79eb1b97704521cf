package controller_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
)

// call is where in a call of EC2 controllers are killed: when it has come, and then it is
// not done, or when it is done and nobody has been told.
type call struct {
	action string
	done   bool
}

// killAt kills processes at the next such place, once, and then closes the channel. What
// is terminated while it takes requests is given to tooEarly.
func (e *emulated) killAt(at call, victims []*process, tooEarly func(instance string)) (killed <-chan struct{}) {
	var once sync.Once
	struck := make(chan struct{})
	e.front.Tell(func(form url.Values, done bool) (lost bool) {
		action := form.Get("Action")
		if id := form.Get("InstanceId.1"); action == "TerminateInstances" && !done && e.takesRequests(id) {
			tooEarly(id)
		}
		if action != at.action || done != at.done {
			return false
		}
		once.Do(func() {
			for _, p := range victims {
				_ = p.Process.Kill() // whether it died shows
			}
			lost = true
			close(struck)
		})
		return lost
	})
	return struck
}

// takesRequests says whether an instance may be sent requests, or that is not known.
func (e *emulated) takesRequests(id string) bool {
	snapshot, err := e.fleet.Snapshot(context.Background())
	return err != nil || slices.ContainsFunc(snapshot.Instances, func(in *fleet.Instance) bool { return in.ID == id && !in.Draining })
}

// launched is how often each intent was launched, ever, and which instance it has now.
func (e *emulated) launched(ctx context.Context) (times map[string]int, running map[string]string, err error) {
	machines, err := e.machines(ctx)
	times, running = map[string]int{}, map[string]string{}
	for _, m := range machines {
		times[m.intent]++
		if m.running {
			running[m.intent] = m.id
		}
	}
	return times, running, err
}

var _ = Describe("Controllers that are killed in the middle of a call of EC2", func() {
	It("have it done once, in order, and remember what is there", func(ctx SpecContext) {
		rounds := 1
		if os.Getenv("MRGC_TEST_LONG") != "" {
			rounds = 12
		}
		e := startEmulated(ctx)
		s, client := dynamoSite(ctx, 300*time.Millisecond)
		GinkgoT().Setenv(cloudEnv, e.url)
		GinkgoT().Setenv(fleetEnv, e.path)
		e.beat(ctx)
		store, err := open.Store(ctx, s.address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		settles := func(wanted int) {
			GinkgoHelper()
			Eventually(func(g Gomega) {
				row, err := state.AutoscalingTable(store).Get(ctx, use1)
				g.Expect(err).NotTo(HaveOccurred())
				var remembered autoscaler.State
				g.Expect(json.Unmarshal(row.Value.Memory, &remembered)).To(Succeed())
				members := map[string]string{}
				for _, m := range remembered.Members {
					g.Expect(m.Phase).To(Equal(autoscaler.Serving))
					members[m.Intent] = m.Instance
				}
				_, running, err := e.launched(ctx)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(running).To(HaveLen(wanted))
				g.Expect(members).To(Equal(running))
			}, "30s", "50ms").Should(Succeed())
		}
		running := []*process{s.start("use1"), s.start("use1")}
		settles(2)
		var tooEarly sync.Map
		for range rounds {
			for _, step := range []struct {
				at     call
				wanted int
			}{
				{call{"RunInstances", false}, 4},
				{call{"TerminateInstances", false}, 3},
				{call{"RunInstances", true}, 5},
				{call{"TerminateInstances", true}, 2},
			} {
				By(fmt.Sprintf("going to %d: killed at %+v", step.wanted, step.at))
				killed := e.killAt(step.at, running, func(id string) { tooEarly.Store(id, true) })
				setByHand(ctx, client, "desired_capacity", step.wanted)
				Eventually(killed, "30s").Should(BeClosed())
				for i := range running {
					running[i] = s.start("use1")
				}
				settles(step.wanted)
			}
		}
		times, _, err := e.launched(ctx)
		Expect(err).NotTo(HaveOccurred())
		for intent, n := range times {
			Expect(n).To(Equal(1), "%s was launched twice", intent)
		}
		tooEarly.Range(func(id, _ any) bool {
			Fail(fmt.Sprintf("%s was terminated while it took requests", id))
			return false
		})
		AddReportEntry("launches", len(times))
	}, SpecTimeout(10*time.Minute))
})
