package dynamodb_test

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// TestMain lets the test binary stand in for another process of the cluster.
func TestMain(m *testing.M) {
	if endpoint := os.Getenv(writerEnv); endpoint != "" {
		os.Exit(runWriter(endpoint))
	}
	os.Exit(m.Run())
}

func TestDynamoDB(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/fleet/dynamodb")
}

// shared is the DynamoDB Local of all specs that do not kill it, each with a
// table of its own; nil where it cannot run.
var shared *dynamodblocal.Server

var _ = BeforeSuite(func(ctx SpecContext) {
	if dynamodblocal.Missing() == "" {
		shared = startLocal(ctx, dynamodblocal.Config{})
	}
}, NodeTimeout(time.Minute))

// startLocal starts a server that ends with the spec or the suite.
func startLocal(ctx context.Context, cfg dynamodblocal.Config) *dynamodblocal.Server {
	GinkgoHelper()
	cfg.Log = GinkgoWriter
	server, err := dynamodblocal.Start(ctx, cfg)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(server.Kill)
	return server
}

func needLocal() {
	GinkgoHelper()
	if missing := dynamodblocal.Missing(); missing != "" {
		Skip(missing)
	}
}

var tables atomic.Int64

// newTable names a table that is not there yet, and how to get at it.
func newTable() dynamodb.Config {
	GinkgoHelper()
	needLocal()
	return config(shared.Endpoint(), fmt.Sprintf("gpu_instances_%d", tables.Add(1)))
}

func config(endpoint, table string) dynamodb.Config {
	return dynamodb.Config{
		Table: table, Region: "us-east-1", Endpoint: endpoint, PollInterval: 100 * time.Millisecond,
		Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	}
}

// createTable makes a table of the spec's own.
func createTable(ctx context.Context) dynamodb.Config {
	GinkgoHelper()
	cfg := newTable()
	ensureTable(ctx, cfg)
	return cfg
}

// ensureTable makes a table as `mrgc state init` does, without replicas.
func ensureTable(ctx context.Context, cfg dynamodb.Config) {
	GinkgoHelper()
	client, err := dynamo.NewClient(ctx, awsclient.Settings{Region: cfg.Region, Endpoint: cfg.Endpoint, Credentials: cfg.Credentials})
	Expect(err).NotTo(HaveOccurred())
	defer client.Close()
	table := schema.GPUInstances
	table.Name, table.Regions = cfg.Table, nil
	report, err := client.Ensure(ctx, table)
	Expect(err).NotTo(HaveOccurred())
	Expect(report.Err()).NotTo(HaveOccurred())
}

func open(ctx context.Context, cfg dynamodb.Config) *dynamodb.Store {
	GinkgoHelper()
	store, err := dynamodb.Open(ctx, cfg)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(store.Close)
	return store
}

func instance(id string) fleet.Instance {
	return fleet.Instance{ID: id, Region: "use1", Address: "127.0.0.1:8080"}
}
