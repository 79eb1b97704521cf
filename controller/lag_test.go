package controller_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
)

var _ = Describe("Replication lag", func() {
	begin := time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	var l controller.Lags
	behind := func(seconds float64) any {
		lag, known := l.Behind("use2", at(seconds))
		if !known {
			return "unknown"
		}
		return lag.Seconds()
	}
	BeforeEach(func() { l = controller.Lags{} })

	It("is unknown at first, and from when a version is in the lease until it is in the heartbeat then", func() {
		Expect(behind(0)).To(Equal("unknown"))
		l.Leased("use2", 5, 1, at(0))
		Expect(behind(1)).To(Equal("unknown"), "its heartbeat may not have been sent")
		l.Heard("use2", 4, at(1))
		Expect(behind(1)).To(Equal("unknown"))
		l.Heard("use2", 5, at(1.5))
		Expect(behind(1.5)).To(Equal(1.5))
		l.Leased("use2", 6, 1, at(2))
		l.Heard("use2", 6, at(2))
		Expect(behind(3)).To(Equal(0.0))
		l.Leased("use2", 7, 1, at(4))
		l.Heard("use2", 9, at(4))
		Expect(behind(4)).To(Equal(0.0), "a heartbeat may be seen before its lease is")
	})

	It("grows while heartbeats do not come though the lease is renewed, and shrinks when they do", func() {
		for i := range 100 {
			l.Leased("use2", int64(1+i), 1, at(float64(2*i)))
		}
		Expect(behind(199)).To(Equal(199.0))
		l.Heard("use2", 98, at(200))
		Expect(behind(200)).To(BeNumerically("<", 200.0))
		l.Leased("use2", 101, 1, at(202))
		l.Heard("use2", 101, at(202))
		Expect(behind(202)).To(Equal(0.0))
	})

	It("is constant when every heartbeat comes as late", func() {
		for i := range 20 {
			l.Leased("use2", int64(1+i), 1, at(float64(2*i)))
			l.Heard("use2", int64(1+i-4), at(float64(2*i)))
		}
		Expect(behind(38)).To(Equal(8.0))
	})

	It("does not take a leader that died, and the time until the next, for lag", func() {
		l.Leased("use2", 1, 1, at(0))
		l.Heard("use2", 1, at(0))
		l.Leased("use2", 2, 1, at(2)) // dies before its heartbeat
		Expect(behind(9)).To(Equal(0.0))
		l.Leased("use2", 3, 2, at(9)) // the next
		Expect(behind(9)).To(Equal(0.0))
		l.Leased("use2", 4, 2, at(11))
		Expect(behind(11)).To(Equal(2.0))
	})

	It("is unknown once nobody renews the lease", func() {
		l.Leased("use2", 1, 1, at(0))
		l.Heard("use2", 1, at(1))
		Expect(behind(30)).To(Equal(1.0))
		Expect(behind(31)).To(Equal("unknown"))
	})

	It("begins anew when somebody has removed the lease", func() {
		l.Leased("use2", 50, 7, at(0))
		l.Leased("use2", 51, 7, at(2))
		Expect(behind(2)).To(Equal(2.0))
		l.Leased("use2", 1, 1, at(4))
		Expect(behind(4)).To(Equal("unknown"))
		l.Heard("use2", 1, at(5))
		Expect(behind(5)).To(Equal(1.0))
	})
})
