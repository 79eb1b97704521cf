package main

import (
	"context"
	"testing"
	"time"

	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/bench/result"
)

// seen is a step after what was written down of it has been read.
func seen(s step, now string) *step {
	before := s
	after := &step{name: s.name, packages: s.packages, code: now}
	recall([]*step{after}, []result.Result{account([]*step{&before})})
	return after
}

func TestStepsAreDueUntilTheyHavePassedAsTheirCodeIs(t *testing.T) {
	g := NewWithT(t)
	s := step{name: "a", packages: []string{"./a"}, code: "c0de"}
	g.Expect(seen(s, "c0de").due()).To(BeTrue(), "never run")
	s.outcome, s.of, s.took, s.at = passed, "c0de", 83*time.Second, time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	after := seen(s, "c0de")
	g.Expect(after.due()).To(BeFalse())
	g.Expect(after.took).To(Equal(s.took))
	g.Expect(after.at).To(Equal(s.at))
	g.Expect(seen(s, "other").due()).To(BeTrue(), "it has passed with other code")
	s.outcome = failed
	g.Expect(seen(s, "c0de").due()).To(BeTrue(), "it has failed")
	s.outcome, s.packages = passed, nil
	g.Expect(seen(s, "").due()).To(BeTrue(), "it knows for itself what there is to do")
}

func TestAFailedStepIsWrittenDownAndABrokenOneIsNot(t *testing.T) {
	g := NewWithT(t)
	s := &step{name: "a", command: []string{"false"}, code: "c0de"}
	g.Expect(s.run(t.Context())).To(MatchError(ContainSubstring("a: exit status 1")))
	g.Expect(s.outcome).To(Equal(failed))
	g.Expect(account([]*step{s}).Figures[1].Value).To(BeEquivalentTo(1))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = &step{name: "a", command: []string{"true"}}
	g.Expect(s.run(ctx)).To(MatchError(context.Canceled))
	g.Expect(s.outcome).To(BeEmpty())
}

func TestAStepThatNeedsWhatIsNotThereIsNotRun(t *testing.T) {
	g := NewWithT(t)
	g.Expect((&step{needs: "none/such"}).missing()).To(BeTrue())
	g.Expect((&step{needs: "main_test.go"}).missing()).To(BeFalse())
	g.Expect((&step{}).missing()).To(BeFalse())
}

func TestStepsHaveNamesOfTheirOwn(t *testing.T) {
	g := NewWithT(t)
	names := map[string]bool{}
	for _, s := range steps() {
		names[s.name] = true
		g.Expect(s.says).NotTo(BeEmpty())
	}
	g.Expect(names).To(HaveLen(len(steps())))
}
