package lease_test

import (
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/lease"
)

func TestLease(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/lease")
}

const length = 9 * time.Second // and so a grace of 1 s

var begin = time.Date(2026, time.March, 14, 9, 26, 53, 0, time.UTC)

func at(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }

func candidate() *lease.Candidate {
	GinkgoHelper()
	c, err := lease.New(lease.Config{Self: "me", Length: length})
	Expect(err).NotTo(HaveOccurred())
	return c
}

// held is a lease of somebody else's.
func held(token int64) lease.Record {
	return lease.Record{Holder: "other", Token: token, Length: length}
}

// acquire has a candidate take a free lease, beginning at a time.
func acquire(c *lease.Candidate, seconds float64) {
	GinkgoHelper()
	Expect(c.Next(at(seconds)).Kind).To(Equal(lease.Read))
	c.Read(lease.Record{}, 0, at(seconds))
	Expect(c.Next(at(seconds)).Kind).To(Equal(lease.Write))
	c.Wrote(1)
}

func token(c *lease.Candidate, seconds float64) int64 {
	token, _ := c.Held(at(seconds))
	return token
}

var _ = Describe("A candidate", func() {
	It("takes what nobody has, with the first token", func() {
		c := candidate()
		Expect(c.Next(at(0))).To(Equal(lease.Do{Kind: lease.Read}))
		c.Read(lease.Record{}, 0, at(0.1))
		Expect(token(c, 0.1)).To(BeZero())
		Expect(c.Next(at(0.2))).To(Equal(lease.Do{
			Kind: lease.Write, Record: lease.Record{Holder: "me", Token: 1, Length: length}, Version: 0,
		}))
		Expect(token(c, 0.2)).To(BeZero(), "it is not written yet")
		c.Wrote(1)
		Expect(token(c, 0.3)).To(Equal(int64(1)))
		Expect(c.Holder()).To(Equal("me"))
	})

	It("renews in thirds of the length, with the same token, and acts that long from when it began", func() {
		c := candidate()
		acquire(c, 0)
		Expect(c.Next(at(1))).To(Equal(lease.Do{Kind: lease.Wait, At: at(3)}))
		do := c.Next(at(3.5))
		Expect(do).To(Equal(lease.Do{
			Kind: lease.Write, Record: lease.Record{Holder: "me", Token: 1, Length: length}, Version: 1,
		}))
		c.Wrote(2) // whenever the answer came
		Expect(token(c, 12.4)).To(Equal(int64(1)))
		Expect(token(c, 12.5)).To(BeZero())
	})

	It("waits for another's to run out, by its own clock and from when it saw it last", func() {
		c := candidate()
		c.Next(at(0))
		c.Read(held(4), 7, at(0))
		Expect(c.Next(at(0))).To(Equal(lease.Do{Kind: lease.Wait, At: at(3)}))
		Expect(c.Next(at(3)).Kind).To(Equal(lease.Read))
		c.Read(held(4), 8, at(3)) // renewed
		for _, second := range []float64{6, 9, 12} {
			Expect(c.Next(at(second)).Kind).To(Equal(lease.Read))
			c.Read(held(4), 8, at(second))
		}
		Expect(c.Next(at(12.5))).To(Equal(lease.Do{Kind: lease.Wait, At: at(13)}), "not when the next look is due")
		do := c.Next(at(13))
		Expect(do.Kind).To(Equal(lease.Write))
		Expect(do.Record.Token).To(Equal(int64(5)))
		Expect(do.Version).To(Equal(int64(8)))
	})

	It("takes at once what was given back", func() {
		c := candidate()
		c.Next(at(0))
		c.Read(lease.Record{Token: 4, Length: length}, 7, at(0))
		Expect(c.Next(at(0)).Record.Token).To(Equal(int64(5)))
	})

	It("does not count the time in which the store could not be read against the lease it saw", func() {
		c := candidate()
		c.Next(at(0))
		c.Read(held(4), 7, at(0))
		Expect(c.Next(at(3)).Kind).To(Equal(lease.Read))
		c.Unknown(at(5))
		Expect(c.Next(at(5))).To(Equal(lease.Do{Kind: lease.Wait, At: at(6.5)}))
		Expect(c.Next(at(3600)).Kind).To(Equal(lease.Read), "an hour later: first it looks")
		c.Read(held(4), 8, at(3600))
		Expect(c.Next(at(3600)).Kind).To(Equal(lease.Wait), "it was renewed, nobody knows when")
	})

	It("takes what nobody could renew while the store was away", func() {
		c := candidate()
		c.Next(at(0))
		c.Read(held(4), 7, at(0))
		c.Next(at(3))
		c.Unknown(at(5))
		c.Next(at(3600))
		c.Read(held(4), 7, at(3600))
		Expect(c.Next(at(3600)).Record.Token).To(Equal(int64(5)))
	})

	It("holds it no more once somebody else has written", func() {
		c := candidate()
		acquire(c, 0)
		c.Next(at(3))
		c.Refused()
		Expect(token(c, 3)).To(BeZero())
		Expect(c.Next(at(3)).Kind).To(Equal(lease.Read))
		c.Read(held(2), 2, at(3))
		Expect(c.Next(at(3)).Kind).To(Equal(lease.Wait))
	})

	It("holds it no more once it reads that another does", func() {
		c := candidate()
		acquire(c, 0)
		c.Next(at(3))
		c.Unknown(at(4))
		c.Next(at(6))
		c.Read(held(2), 2, at(6))
		Expect(token(c, 6)).To(BeZero())
	})

	DescribeTable("whose renewal had no answer goes on until its time is over",
		func(version int64) {
			c := candidate()
			acquire(c, 0)
			c.Next(at(3))
			c.Unknown(at(5))
			Expect(token(c, 8)).To(Equal(int64(1)))
			Expect(c.Next(at(6.5)).Kind).To(Equal(lease.Read))
			c.Read(lease.Record{Holder: "me", Token: 1, Length: length}, version, at(7))
			do := c.Next(at(7))
			Expect(do.Record.Token).To(Equal(int64(1)), "a renewal")
			Expect(do.Version).To(Equal(version))
			Expect(token(c, 9)).To(BeZero(), "what it reads does not prolong it")
		},
		Entry("whether it was made", int64(2)),
		Entry("or not", int64(1)),
	)

	It("that finds itself the holder by an answer it never got takes a new token", func() {
		c := candidate()
		c.Next(at(0))
		c.Read(lease.Record{}, 0, at(0))
		c.Next(at(0))
		c.Unknown(at(2))
		c.Next(at(4))
		c.Read(lease.Record{Holder: "me", Token: 1, Length: length}, 1, at(4))
		Expect(token(c, 4)).To(BeZero())
		Expect(c.Next(at(4)).Record.Token).To(Equal(int64(2)))
	})

	It("takes a new token after its time was over, though nobody took it", func() {
		c := candidate()
		acquire(c, 0)
		do := c.Next(at(9))
		Expect(do.Record.Token).To(Equal(int64(2)))
		Expect(do.Version).To(Equal(int64(1)))
	})

	It("takes a token above those that were seen, when the record was removed", func() {
		c := candidate()
		acquire(c, 0)
		c.Above(7)
		do := c.Next(at(1))
		Expect(do.Kind).To(Equal(lease.Write))
		Expect(do.Record.Token).To(Equal(int64(8)))
		c.Wrote(2)
		Expect(token(c, 1)).To(Equal(int64(8)))
		Expect(c.Next(at(1)).Kind).To(Equal(lease.Wait))
	})

	It("can have it last for longer, renews it as often, and is held to what it wrote last", func() {
		c := candidate()
		acquire(c, 0)
		Expect(c.Last(5 * length)).To(Succeed())
		do := c.Next(at(1))
		Expect(do.Record).To(Equal(lease.Record{Holder: "me", Token: 1, Length: 5 * length}), "at once")
		Expect(token(c, 8.9)).To(Equal(int64(1)))
		Expect(token(c, 9)).To(BeZero(), "not before that is known")
		c.Wrote(2)
		Expect(token(c, 45.9)).To(Equal(int64(1)))
		Expect(token(c, 46)).To(BeZero())
		Expect(c.Next(at(1))).To(HaveField("At", at(4)))
		Expect(c.Last(5 * length)).To(Succeed())
		Expect(c.Next(at(1))).To(HaveField("At", at(4)), "nothing new")

		Expect(c.Last(length)).To(Succeed())
		Expect(c.Next(at(1))).To(HaveField("At", at(4)), "there is no hurry")
		Expect(c.Next(at(4)).Record.Length).To(Equal(length))
		c.Unknown(at(5))
		Expect(token(c, 12.9)).To(Equal(int64(1)))
		Expect(token(c, 13)).To(BeZero(), "others may have read it")

		Expect(c.Last(length - 1)).To(MatchError(ContainSubstring("length 8.999999999s")))
		Expect(c.Last(2 * time.Hour)).To(MatchError(ContainSubstring("length 2h")))
	})

	It("takes at once what an earlier process in its place held, and nobody else's", func() {
		c, err := lease.New(lease.Config{Self: "use1-1/b", Place: "use1-1/", Length: length})
		Expect(err).NotTo(HaveOccurred())
		c.Next(at(0))
		c.Read(lease.Record{Holder: "use1-10/a", Token: 4, Length: 9 * length}, 3, at(0))
		Expect(c.Next(at(0)).Kind).To(Equal(lease.Wait))
		c.Read(lease.Record{Holder: "use1-1/a", Token: 5, Length: 9 * length}, 4, at(1))
		do := c.Next(at(1))
		Expect(do.Record).To(Equal(lease.Record{Holder: "use1-1/b", Token: 6, Length: length}))
		Expect(do.Version).To(Equal(int64(4)))
	})

	It("gives back what it holds, and nothing else", func() {
		c := candidate()
		_, held := c.Release(at(0))
		Expect(held).To(BeFalse())
		acquire(c, 0)
		do, held := c.Release(at(1))
		Expect(held).To(BeTrue())
		Expect(do.Record).To(Equal(lease.Record{Token: 1, Length: length}))
		Expect(do.Version).To(Equal(int64(1)))
		Expect(token(c, 1)).To(BeZero())

		c = candidate()
		acquire(c, 0)
		_, held = c.Release(at(9))
		Expect(held).To(BeFalse(), "its time was over")
	})
})

var _ = DescribeTable("Refused is", func(validate func() error, why string) {
	Expect(validate()).To(MatchError(ContainSubstring(why)))
},
	Entry("a candidate without a name", func() error { _, err := lease.New(lease.Config{Length: length}); return err }, "no name"),
	Entry("a candidate's short lease", func() error { _, err := lease.New(lease.Config{Self: "a", Length: 1}); return err }, "length 1ns"),
	Entry("a candidate's long lease", func() error { _, err := lease.New(lease.Config{Self: "a", Length: 2 * time.Hour}); return err }, "length 2h"),
	Entry("a record without a token", lease.Record{Length: length}.Validate, "token 0"),
	Entry("a record without a length", lease.Record{Token: 1}.Validate, "length_ns 0"),
)
