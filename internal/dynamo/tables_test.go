package dynamo_test

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/state/schema"
)

func TestDynamo(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/dynamo")
}

var shared *dynamodblocal.Server

var _ = BeforeSuite(func(ctx SpecContext) {
	if dynamodblocal.Missing() != "" {
		return
	}
	var err error
	shared, err = dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(shared.Kill)
	// The first creation of all may take longer than one is waited for.
	_, err = connect(shared.Endpoint()).Ensure(ctx, schema.Table{Name: "warm", PartitionKey: schema.Attribute{Name: "id", Type: "S"}})
	Expect(err).NotTo(HaveOccurred())
}, NodeTimeout(time.Minute))

var prefixes atomic.Int64

func needLocal() (client *dynamo.Client, prefix string) {
	GinkgoHelper()
	if missing := dynamodblocal.Missing(); missing != "" {
		Skip(missing)
	}
	return connect(shared.Endpoint()), fmt.Sprintf("t%d-", prefixes.Add(1))
}

func connect(endpoint string) *dynamo.Client {
	GinkgoHelper()
	client, err := dynamo.NewClient(context.Background(), awsclient.Settings{
		Region: "us-east-1", Endpoint: endpoint, Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(client.Close)
	return client
}

// here is a table without replicas, which DynamoDB Local has none of.
func here(t schema.Table) schema.Table {
	t.Regions = nil
	return t
}

var _ = Describe("Ensuring the tables", func() {
	It("creates them all, and does nothing the second time", func(ctx SpecContext) {
		client, prefix := needLocal()
		for _, table := range schema.All(prefix) {
			report, err := client.Ensure(ctx, here(table))
			Expect(err).NotTo(HaveOccurred())
			Expect(report.Did).To(ContainElement("created"))
			Expect(report.Err()).NotTo(HaveOccurred())
			again, err := client.Ensure(ctx, here(table))
			Expect(err).NotTo(HaveOccurred())
			Expect(again.Did).To(BeEmpty())
			Expect(again.Differs).To(BeEmpty())
		}
	}, SpecTimeout(time.Minute))

	It("gives a table that is there what it lacks", func(ctx SpecContext) {
		client, prefix := needLocal()
		want := here(schema.CleanupValidation)
		want.Name = prefix + want.Name
		bare := want
		bare.Indexes, bare.Stream, bare.TTLAttribute = nil, false, ""
		_, err := client.Ensure(ctx, bare)
		Expect(err).NotTo(HaveOccurred())

		report, err := client.Ensure(ctx, want)
		Expect(err).NotTo(HaveOccurred())
		Expect(report.Did).To(HaveExactElements("index by_region", "ttl_attribute", "stream"))
		Expect(report.Differs).To(BeEmpty())
		got, err := client.DescribeTable(ctx, &sdk.DescribeTableInput{TableName: &want.Name})
		Expect(err).NotTo(HaveOccurred())
		Expect(got.Table.GlobalSecondaryIndexes).To(HaveLen(1))
		Expect(got.Table.StreamSpecification.StreamViewType).To(Equal(types.StreamViewTypeNewAndOldImages))
		Expect(got.Table.BillingModeSummary.BillingMode).To(Equal(types.BillingModePayPerRequest))
		ttl, err := client.DescribeTimeToLive(ctx, &sdk.DescribeTimeToLiveInput{TableName: &want.Name})
		Expect(err).NotTo(HaveOccurred())
		Expect(*ttl.TimeToLiveDescription.AttributeName).To(Equal("expires_at_unix_s"))
	}, SpecTimeout(time.Minute))

	DescribeTable("leaves a table of another key as it is, and says so: one",
		func(ctx SpecContext, key schema.Attribute, sort *schema.Attribute, is string) {
			client, prefix := needLocal()
			other := schema.Table{Name: prefix + "metrics", PartitionKey: key, SortKey: sort}
			_, err := client.Ensure(ctx, other)
			Expect(err).NotTo(HaveOccurred())
			want := here(schema.Metrics)
			want.Name, want.Stream, want.TTLAttribute = other.Name, false, ""
			report, err := client.Ensure(ctx, want)
			Expect(err).NotTo(HaveOccurred())
			Expect(report.Did).To(BeEmpty())
			Expect(report.Err()).To(MatchError(And(ContainSubstring(want.Name),
				ContainSubstring("key is "+is+", want series (S), at (S): a table's key cannot be changed"))))
		},
		Entry("of another name", schema.Attribute{Name: "id", Type: "S"}, &schema.Attribute{Name: "at", Type: "S"}, "id (S), at (S)"),
		Entry("of another type", schema.Attribute{Name: "series", Type: "S"}, &schema.Attribute{Name: "at", Type: "N"}, "series (S), at (N)"),
		Entry("of less", schema.Attribute{Name: "series", Type: "S"}, nil, "series (S)"),
	)

	It("asks for a strongly consistent table's replicas all at once", func(ctx SpecContext) {
		cloud := newCloud()
		report, err := connect(cloud.url).Ensure(ctx, schema.RoutingState)
		Expect(err).NotTo(HaveOccurred())
		Expect(report.Did).To(HaveExactElements("created", "regions"))
		Expect(report.Differs).To(BeEmpty())
		Expect(cloud.updates).To(HaveExactElements(MatchJSON(`{"TableName":"routing_state","MultiRegionConsistency":"STRONG",
			"ReplicaUpdates":[{"Create":{"RegionName":"us-east-2"}},{"Create":{"RegionName":"us-west-2"}}]}`)))
	})

	It("asks for another table's replicas one after the other", func(ctx SpecContext) {
		cloud := newCloud()
		report, err := connect(cloud.url).Ensure(ctx, schema.GPUInstances)
		Expect(err).NotTo(HaveOccurred())
		Expect(report.Did).To(HaveExactElements("created", "ttl_attribute", "regions"))
		Expect(report.Differs).To(BeEmpty())
		Expect(cloud.updates).To(HaveExactElements(
			MatchJSON(`{"TableName":"gpu_instances","ReplicaUpdates":[{"Create":{"RegionName":"us-east-2"}}]}`),
			MatchJSON(`{"TableName":"gpu_instances","ReplicaUpdates":[{"Create":{"RegionName":"us-west-2"}}]}`)))
	})

	It("does not ask for ever for what is never done", func(ctx SpecContext) {
		cloud := newCloud()
		cloud.deaf = true
		_, err := connect(cloud.url).Ensure(ctx, schema.GPUInstances)
		Expect(err).To(MatchError(ContainSubstring("did not make it")))
		Expect(cloud.updates).To(HaveLen(1))
	})
})

// cloud answers as DynamoDB does about one table and its replicas, which DynamoDB
// Local does not have.
type cloud struct {
	url     string
	updates []string // bodies of UpdateTable
	deaf    bool     // makes no replica

	table map[string]any
	ttl   string
	asked int // since the last change: what changes takes a while
}

func newCloud() *cloud {
	c := &cloud{}
	server := httptest.NewServer(http.HandlerFunc(c.serve))
	DeferCleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *cloud) serve(w http.ResponseWriter, r *http.Request) {
	var raw json.RawMessage
	_ = json.NewDecoder(r.Body).Decode(&raw)
	var body map[string]any
	_ = json.Unmarshal(raw, &body)
	var result any
	switch _, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), "."); operation {
	case "CreateTable":
		c.table, c.asked = body, 0
		result = map[string]any{"TableDescription": c.table}
	case "DescribeTable":
		c.asked++
		c.table["TableStatus"] = "UPDATING"
		if c.asked > 1 {
			c.table["TableStatus"] = "ACTIVE"
		}
		result = map[string]any{"Table": c.table}
	case "DescribeTimeToLive":
		result = map[string]any{"TimeToLiveDescription": map[string]any{"TimeToLiveStatus": "DISABLED"}}
		if c.ttl != "" {
			result = map[string]any{"TimeToLiveDescription": map[string]any{"TimeToLiveStatus": "ENABLING", "AttributeName": c.ttl}}
		}
	case "UpdateTimeToLive":
		c.ttl = body["TimeToLiveSpecification"].(map[string]any)["AttributeName"].(string)
		result = map[string]any{}
	case "UpdateTable":
		c.updates, c.asked = append(c.updates, string(raw)), 0
		if !c.deaf {
			replicas, _ := c.table["Replicas"].([]any)
			for _, update := range body["ReplicaUpdates"].([]any) {
				replicas = append(replicas, map[string]any{
					"RegionName": update.(map[string]any)["Create"].(map[string]any)["RegionName"], "ReplicaStatus": "ACTIVE",
				})
			}
			c.table["Replicas"] = replicas
			if consistency, there := body["MultiRegionConsistency"]; there {
				c.table["MultiRegionConsistency"] = consistency
			}
		}
		result = map[string]any{"TableDescription": c.table}
	}
	answer, _ := json.Marshal(result)
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(answer)), 10))
	_, _ = w.Write(answer)
}
