package autoscaler_test

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/fleet"
)

var _ = Describe("What a request takes", func() {
	It("is learned: as many are launched as serve its tokens in time", func() {
		r := loaded(4, 12)
		r.config.Learn = true
		load := &r.obs.Load
		load.Models = map[string]autoscaler.Usage{"m": {Tokens: 48 * 1000, Served: 48 * 1000}}
		r.goes(10 * time.Minute)
		Expect(r.state.Capacity["m"].Tokens).To(BeNumerically("~", 15000, 300), "15 requests of 1,000 tokens until more is known")
		// Requests are half as long: three times as many are served in time, so that no more are launched.
		load.Requests = 96
		load.Models["m"] = autoscaler.Usage{Tokens: 48 * 1000, Served: 48 * 1000}
		r.goes(20 * time.Minute)
		Expect(r.state.Desired).To(Equal(4))
		// They are three times as long: as many requests take more.
		load.Requests = 48
		load.Models["m"] = autoscaler.Usage{Tokens: 48 * 3000, Served: 4 * 15000, Late: 0.2}
		r.goes(40 * time.Minute)
		Expect(r.state.Desired).To(BeNumerically(">=", 10))
	})
	It("is seen to be less than was thought when requests are late", func() {
		r := loaded(4, 12)
		r.config.Learn = true
		r.obs.Load.Models = map[string]autoscaler.Usage{"m": {Tokens: 48 * 1000, Served: 48 * 1000}}
		r.goes(10 * time.Minute)
		r.obs.Load.Models["m"] = autoscaler.Usage{Tokens: 48 * 1000, Served: 48 * 1000, Late: 0.1}
		r.goes(time.Hour)
		Expect(r.state.Capacity["m"].Tokens).To(BeNumerically("<", 12000))
		Expect(r.state.Desired).To(BeNumerically(">", 4))
	})
	It("is learned of so many models at most, and of new ones when others are gone", func() {
		r := loaded(4, 12)
		r.config.Learn = true
		use := func(first, n int) {
			r.obs.Load.Models = map[string]autoscaler.Usage{}
			for i := range n {
				r.obs.Load.Models[fmt.Sprintf("m%03d", first+i)] = autoscaler.Usage{Tokens: 480, Served: 480}
			}
			r.goes(time.Minute)
		}
		use(0, 100)
		Expect(r.state.Capacity).To(HaveLen(64))
		Expect(r.state.Said.Demand).To(Equal(48.0), "what is not learned weighs as requests do")
		use(90, 10)
		Expect(r.state.Capacity).To(HaveLen(10))
		Expect(r.state.Capacity).To(HaveKey("m099"))
	})
	It("is nothing of a model that nobody asks for", func() {
		r := loaded(4, 12)
		r.config.Learn = true
		r.obs.Load.Models = map[string]autoscaler.Usage{"m": {Tokens: 48_000, Served: 48_000}}
		r.goes(time.Minute)
		r.obs.Load.Models = map[string]autoscaler.Usage{"m": {Tokens: 24_000, Served: 24_000}, "other": {}}
		r.step()
		Expect(r.state.Said.Demand).To(BeNumerically("~", 24, 0.5))
	})
	It("is told apart by model", func() {
		r := loaded(4, 12)
		r.config.Learn = true
		r.obs.Load.Models = map[string]autoscaler.Usage{"m": {Tokens: 24 * 1000, Served: 24 * 1000}, "n": {Tokens: 24 * 1000, Served: 24 * 1000, Late: 0.1}}
		r.goes(time.Hour)
		Expect(r.state.Capacity["n"].Tokens).To(BeNumerically("<", r.state.Capacity["m"].Tokens))
	})
})

var _ = Describe("A reserve", func() {
	It("is for this region's share of whichever other is lost, without a launch", func() {
		r := loaded(4, 12.5) // 50 requests/s
		r.config.Reserve = true
		r.obs.Others = map[fleet.Region]autoscaler.Load{"use2": {Fresh: true, Requests: 50}, "usw2": {Fresh: true, Requests: 80}}
		r.goes(20 * time.Minute)
		Expect(r.ready()).To(Equal(6), "50 + 80/2 requests/s at 15 each")
		r.obs.Load.Requests, r.obs.Others = 90, map[fleet.Region]autoscaler.Load{"use2": {Fresh: true, Requests: 90}}
		r.config.Reserve = false
		r.goes(time.Hour)
		Expect(r.state.Desired).To(Equal(6), "what it was for: 15 requests/s each")
	})
})

var _ = DescribeTable("A reserve is not given up while the other's load is not known", func(forecast bool) {
	r := loaded(4, 12.5)
	r.config.Reserve, r.config.Forecast = true, forecast
	r.obs.Others = map[fleet.Region]autoscaler.Load{"use2": {Fresh: true, Requests: 80}}
	r.goes(time.Hour)
	n := r.state.Desired
	Expect(n).To(BeNumerically(">=", 9))
	r.obs.Load.Requests, r.obs.Others["use2"] = 30, autoscaler.Load{}
	r.goes(2 * time.Hour)
	Expect(r.state.Desired).To(Equal(n))
	r.obs.Others["use2"] = autoscaler.Load{Fresh: true, Requests: 10}
	r.goes(2 * time.Hour)
	Expect(r.state.Desired).To(BeNumerically("<", n))
}, Entry("by the plain rules", false), Entry("by forecast", true))

var _ = Describe("A forecast", func() {
	day := func(at time.Time) float64 { // quiet, but for a steep rise at eight
		hour := float64(at.Unix()%86400) / 3600
		return 40 + 160*min(max(hour-8, 0), 1)*min(max(20-hour, 0), 1)
	}
	misses := func(forecast bool) (late int) {
		r := newRegion()
		r.config.Forecast = forecast
		r.obs.Load.Requests = day(r.now)
		for r.now.Before(epoch.Add(72 * time.Hour)) {
			usage := autoscaler.Usage{Tokens: 1000 * day(r.now), Served: 1000 * min(day(r.now), 15*float64(r.ready()))}
			if usage.Served < usage.Tokens {
				usage.Late = 1
			}
			r.obs.Load.Requests, r.obs.Load.Models = day(r.now), map[string]autoscaler.Usage{"m": usage}
			r.step()
			if r.now.After(epoch.Add(48*time.Hour)) && day(r.now) > 15*float64(r.ready()) {
				late++
			}
		}
		return late
	}
	It("starts before the rise of the day before, where the plain rules are late", func() {
		Expect(misses(true)).To(BeNumerically("<", 0.007*6*60*24), "what it may")
		Expect(misses(false)).To(BeNumerically(">", 60))
	})
	It("learns its margin from the requests that are late, and not from those that are for want of instances", func() {
		margin := func(late float64, full bool) float64 {
			r := loaded(4, 10)
			r.config.Forecast = true
			r.full["a"], r.full["b"], r.full["c"] = full, full, full
			if full {
				r.instances = r.instances[:2] // the others cannot be had again
			}
			r.obs.Load.Models = map[string]autoscaler.Usage{"m": {Tokens: 40_000, Served: 40_000, Late: late}}
			r.goes(3 * time.Hour)
			return r.state.Forecast.Margin
		}
		none, some := margin(0, false), margin(0.05, false)
		Expect(none).To(BeNumerically("<", 0.3))
		Expect(some).To(BeNumerically(">", 0.3))
		Expect(margin(1, true)).To(BeNumerically("<", 0.5), "only what was before it was known")
		Expect(margin(1, false)).To(Equal(0.6), "bounded")
	})
	It("goes by what is now when it was off for hours, and by the days before all the same", func() {
		r := loaded(2, 12)
		r.config.Forecast = true
		r.goes(time.Hour)
		before := r.state.Forecast
		r.config.Forecast = false
		r.obs.Load.Requests = 90
		r.goes(3 * time.Hour)
		r.config.Forecast = true
		r.step()
		Expect(r.state.Said.Ahead).To(BeNumerically("~", 90*(1+r.state.Forecast.Margin), 1), "not the mean with what was hours ago")
		Expect(r.state.Forecast.Days).To(Equal(before.Days))
		Expect(r.state.Forecast.Margin).To(Equal(before.Margin))
	})

	It("lets go half an hour after less is needed, and not of more than that", func() {
		r := loaded(2, 12)
		r.config.Forecast = true
		r.obs.Load.Requests = 100
		r.goes(20 * time.Minute)
		n := r.state.Desired
		Expect(n).To(BeNumerically(">=", 7))
		r.obs.Load.Requests = 60
		r.goes(25 * time.Minute)
		Expect(r.state.Desired).To(Equal(n))
		r.goes(45 * time.Minute)
		Expect(r.state.Desired).To(BeNumerically("<", n))
		Expect(r.state.Desired).To(BeNumerically(">=", 4))
	})
})
