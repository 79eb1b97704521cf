package schema_test

import (
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/state/schema"
)

func TestSchema(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/state/schema")
}

var _ = Describe("The tables", func() {
	It("are five, under one prefix, and leave the originals alone", func() {
		var names []string
		for _, t := range schema.Tables("staging-") {
			names = append(names, t.Name)
		}
		Expect(names).To(HaveExactElements("staging-gpu_instances", "staging-routing_state", "staging-autoscaling_state",
			"staging-cleanup_validation", "staging-metrics"))
		Expect(schema.GPUInstances.Name).To(Equal("gpu_instances"))
		all := schema.All("staging-")
		Expect(all[:5]).To(Equal(schema.Tables("staging-")))
		Expect(all[5:]).To(HaveExactElements(HaveField("Name", "staging-fleet_keys")))
	})

	It("that are strongly consistent have nothing that DynamoDB refuses them", func() {
		strong := 0
		for _, t := range schema.Tables("") {
			if t.Consistency == schema.Strong {
				strong++
				Expect(t.TTLAttribute).To(BeEmpty(), t.Name)
				Expect(t.Regions).To(HaveLen(3), t.Name)
			} else {
				Expect(t.Stream).To(BeTrue(), "%s: asynchronous replication reads the stream", t.Name)
			}
		}
		Expect(strong).To(Equal(2))
	})
})

var _ = Describe("Comparing", func() {
	// washes has something of everything.
	washes := func(change func(*schema.Table)) schema.Table {
		t := schema.CleanupValidation
		t.Indexes = append([]schema.Index{}, t.Indexes...)
		change(&t)
		return t
	}

	DescribeTable("finds", func(change func(*schema.Table), what, todo string) {
		differences := schema.Compare(schema.CleanupValidation, washes(change))
		Expect(differences).To(HaveLen(1))
		Expect(differences[0].What).To(Equal(what))
		if todo == "" {
			Expect(differences[0].Todo).To(BeEmpty())
		} else {
			Expect(differences[0].String()).To(ContainSubstring(todo))
		}
	},
		Entry("another key", func(t *schema.Table) { t.PartitionKey.Name = "id" }, "key", "cannot be changed"),
		Entry("a key of another type", func(t *schema.Table) { t.PartitionKey.Type = "N" }, "key", "cannot be changed"),
		Entry("no sort key", func(t *schema.Table) { t.SortKey = nil }, "key", "instance_id (S), wash_id (S)"),
		Entry("no index", func(t *schema.Table) { t.Indexes = nil }, "index by_region", ""),
		Entry("another index of its name", func(t *schema.Table) { t.Indexes[0].SortKey.Name = "at" }, "index by_region", "delete the index"),
		Entry("no TTL", func(t *schema.Table) { t.TTLAttribute = "" }, "ttl_attribute", ""),
		Entry("another TTL", func(t *schema.Table) { t.TTLAttribute = "ttl" }, "ttl_attribute", "wait until DynamoDB has done so"),
		Entry("no stream", func(t *schema.Table) { t.Stream = false }, "stream", ""),
		Entry("one region of three", func(t *schema.Table) { t.Regions = t.Regions[:1] }, "regions", ""),
		Entry("the other consistency", func(t *schema.Table) { t.Consistency = schema.Strong }, "consistency", "cannot be changed"),
	)

	It("finds replicas of a table that each region has its own of", func() {
		got := schema.FleetKeys
		got.Regions = schema.Regions()[:1]
		Expect(schema.Compare(schema.FleetKeys, got)).To(BeEmpty())
		got.Regions = schema.Regions()[:2]
		Expect(schema.Compare(schema.FleetKeys, got)).To(HaveExactElements(
			And(HaveField("What", "regions"), HaveField("Todo", ContainSubstring("remove the replicas")))))
	})

	It("finds rows that would expire and must not, and replicas that come too late", func() {
		got := schema.RoutingState
		got.TTLAttribute, got.Regions = "ttl", got.Regions[:2]
		Expect(schema.Compare(schema.RoutingState, got)).To(HaveExactElements(
			And(HaveField("What", "ttl_attribute"), HaveField("Todo", ContainSubstring("must not expire"))),
			And(HaveField("What", "regions"), HaveField("Todo", ContainSubstring("all at once"))),
		))
	})

	It("finds nothing where there is more than is wanted", func() {
		got := washes(func(t *schema.Table) {
			t.Indexes = append(t.Indexes, schema.Index{Name: "an_operators"})
			t.Regions = append([]string{"eu-west-1"}, t.Regions...)
		})
		Expect(schema.Compare(schema.CleanupValidation, got)).To(BeEmpty())
		got = schema.RoutingState
		got.Stream = true
		Expect(schema.Compare(schema.RoutingState, got)).To(BeEmpty())
	})
})
