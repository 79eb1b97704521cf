package main

import (
	"encoding/json"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/state/schema"
)

var _ = Describe("mrgc state schema", func() {
	It("is what Terraform makes the tables of", func() {
		got := mrgc("state", "schema", "-o", "json")
		Expect(got.err).NotTo(HaveOccurred())
		var tables []schema.Table
		Expect(json.Unmarshal([]byte(got.stdout), &tables)).To(Succeed())
		Expect(tables).To(Equal(schema.All("")))
		Expect(got.stdout).To(ContainSubstring(`"ttl_attribute": "expires_at_unix_s"`))
	})

	It("is a table for people", func() {
		got := mrgc("state", "schema")
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`routing_state +id +strong +never +leases`))
		Expect(got.stdout).To(MatchRegexp(`metrics +series, at +eventual +expires_at_unix_s`))
	})

	DescribeTable("refuses", func(why string, args ...string) {
		Expect(mrgc(append([]string{"state"}, args...)...).err).To(MatchError(ContainSubstring(why)))
	},
		Entry("an unknown output", "want table or json", "schema", "-o", "yaml"),
		Entry("two regions", "three regions, or one", "schema", "--regions", "us-east-1,us-east-2"),
		Entry("a file", "only DynamoDB has tables to make", "init", "--state", "sqlite:x"),
	)
})

var _ = Describe("mrgc state init", func() {
	It("makes the tables, finds them as they should be, and fails while one is not", func(ctx SpecContext) {
		if missing := dynamodblocal.Missing(); missing != "" {
			Skip(missing)
		}
		GinkgoT().Setenv("AWS_ACCESS_KEY_ID", "local")
		GinkgoT().Setenv("AWS_SECRET_ACCESS_KEY", "local")
		server, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(server.Kill)
		address := "dynamodb:a-?region=us-east-1&endpoint=" + server.Endpoint()

		got := mrgc("state", "init", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`a-metrics +created, ttl_attribute\n`))
		Expect(got.stdout).To(ContainSubstring("without replicas"))
		got = mrgc("state", "init", "--state", address)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(MatchRegexp(`a-routing_state +as it should be\n`))
		Expect(got.stdout).NotTo(ContainSubstring("created"))

		client, err := dynamo.NewClient(ctx, awsclient.Settings{Region: "us-east-1", Endpoint: server.Endpoint()})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(client.Close)
		_, err = client.Ensure(ctx, schema.Table{Name: "b-metrics", PartitionKey: schema.Attribute{Name: "id", Type: "S"}})
		Expect(err).NotTo(HaveOccurred())
		got = mrgc("state", "init", "-o", "json", "--state", "dynamodb:b-?region=us-east-1&endpoint="+server.Endpoint())
		Expect(got.err).To(MatchError(ContainSubstring("b-metrics: key is id (S), want series (S), at (S): a table's key cannot be changed")))
		var reports []dynamo.Report
		Expect(json.Unmarshal([]byte(got.stdout), &reports)).To(Succeed())
		Expect(reports).To(HaveLen(6))
		Expect(reports[0].Did).To(ContainElement("created"))
		Expect(reports[4].Differs).To(HaveLen(1))
	}, SpecTimeout(time.Minute))
})
