package globaltables_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/standin/globaltables"
)

func TestGlobalTables(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "standin/globaltables")
}

const east, ohio, oregon = "us-east-1", "us-east-2", "us-west-2"

// site is one region's endpoint and what lies behind it.
type site struct {
	region string
	dir    string
	local  *dynamodblocal.Server
	front  *httptest.Server
	client *dynamo.Client
	stop   func()

	handler http.Handler // of front
}

// world is three of them.
type world struct {
	strong *dynamodblocal.Server
	sites  map[string]*site
}

func startWorld(ctx context.Context) *world {
	GinkgoHelper()
	if missing := dynamodblocal.Missing(); missing != "" {
		Skip(missing)
	}
	good := gleak.Goroutines()
	DeferCleanup(func() { Eventually(gleak.Goroutines, "10s").ShouldNot(gleak.HaveLeaked(good)) })
	w := &world{strong: startLocal(ctx, dynamodblocal.Config{}), sites: map[string]*site{}}
	for _, region := range schema.Regions() {
		s := &site{region: region, dir: GinkgoT().TempDir()}
		s.local = startLocal(ctx, dynamodblocal.Config{Dir: s.dir})
		s.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }))
		DeferCleanup(s.front.Close)
		w.sites[region] = s
	}
	for _, s := range w.sites {
		w.start(s)
		client, err := dynamo.NewClient(ctx, awsclient.Settings{
			Region: s.region, Endpoint: s.front.URL, Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "secret", ""),
		})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(client.Close)
		s.client = client
	}
	for _, s := range w.sites {
		Eventually(func() error { return s.list(ctx) }, "10s", "50ms").Should(Succeed())
	}
	return w
}

func startLocal(ctx context.Context, cfg dynamodblocal.Config) *dynamodblocal.Server {
	GinkgoHelper()
	cfg.Log = GinkgoWriter
	server, err := dynamodblocal.Start(ctx, cfg)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(server.Kill)
	return server
}

// start runs what is in front of a site's DynamoDB Local until stop is called.
func (w *world) start(s *site) {
	GinkgoHelper()
	peers := map[string]string{}
	for region, other := range w.sites {
		if region != s.region {
			peers[region] = other.front.URL
		}
	}
	r, err := globaltables.Open(globaltables.Config{
		Region: s.region, Near: s.local.Endpoint(), Strong: w.strong.Endpoint(), Peers: peers, Dir: s.dir,
		Logger: slog.New(slog.NewTextHandler(GinkgoWriter, nil)).With("region", s.region),
	})
	Expect(err).NotTo(HaveOccurred())
	s.handler = r
	life, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(life) }()
	s.stop = func() {
		if life.Err() == nil {
			cancel()
			Expect(<-ended).To(Succeed())
		}
	}
	DeferCleanup(func() { s.stop() })
}

// makeTables does what `mrgc state init` does, in one region.
func (w *world) makeTables(ctx context.Context) {
	GinkgoHelper()
	for _, table := range schema.Tables("") {
		report, err := w.sites[east].client.Ensure(ctx, table)
		Expect(err).NotTo(HaveOccurred())
		Expect(report.Err()).NotTo(HaveOccurred())
		Expect(report.Did).To(ContainElements("created", "regions"))
	}
}

func (s *site) list(ctx context.Context) error {
	_, err := s.client.ListTables(ctx, &sdk.ListTablesInput{})
	return err
}

func (s *site) faults(f globaltables.Faults) {
	GinkgoHelper()
	body, err := json.Marshal(f)
	Expect(err).NotTo(HaveOccurred())
	req, err := http.NewRequest(http.MethodPut, s.front.URL+"/faults", bytes.NewReader(body))
	Expect(err).NotTo(HaveOccurred())
	resp, err := http.DefaultClient.Do(req)
	Expect(err).NotTo(HaveOccurred())
	Expect(resp.Body.Close()).To(Succeed())
	Expect(resp.StatusCode).To(Equal(http.StatusOK))
	http.DefaultClient.CloseIdleConnections()
}

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func (s *site) put(ctx context.Context, table, key, value string) error {
	_, err := s.client.UpdateItem(ctx, &sdk.UpdateItemInput{
		TableName: &table, Key: keyOf(table, key), UpdateExpression: aws.String("SET v = :v"),
		ExpressionAttributeValues: map[string]types.AttributeValue{":v": text(value)},
	})
	return err
}

func (s *site) remove(ctx context.Context, table, key string) error {
	_, err := s.client.DeleteItem(ctx, &sdk.DeleteItemInput{TableName: &table, Key: keyOf(table, key)})
	return err
}

// get gives an item's value; "": there is none.
func (s *site) get(ctx context.Context, table, key string) string {
	got, err := s.client.GetItem(ctx, &sdk.GetItemInput{TableName: &table, Key: keyOf(table, key), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return err.Error()
	}
	if value, is := got.Item["v"].(*types.AttributeValueMemberS); is {
		return value.Value
	}
	return ""
}

func keyOf(table, key string) map[string]types.AttributeValue {
	switch table {
	case "metrics":
		return map[string]types.AttributeValue{"series": text(key), "at": text("latest")}
	case "routing_state":
		return map[string]types.AttributeValue{"id": text(key)}
	}
	return map[string]types.AttributeValue{"instance_id": text(key)}
}

// eventually wants a value in every region.
func (w *world) eventually(ctx context.Context, table, key, want string) {
	GinkgoHelper()
	for region, s := range w.sites {
		Eventually(func() string { return s.get(ctx, table, key) }, "20s", "50ms").Should(Equal(want), region)
	}
}

var _ = Describe("Global tables", Ordered, func() {
	var w *world
	BeforeAll(func(ctx SpecContext) { w = startWorld(ctx) }, NodeTimeout(2*time.Minute))
	AfterEach(func() {
		for _, s := range w.sites {
			s.faults(globaltables.Faults{})
		}
	})

	It("are made by what `mrgc state init` does, in all regions, and found to be right by all", func(ctx SpecContext) {
		w.makeTables(ctx)
		for _, s := range w.sites {
			for _, table := range schema.Tables("") {
				report, err := s.client.Ensure(ctx, table)
				Expect(err).NotTo(HaveOccurred())
				Expect(report.Did).To(BeEmpty(), "%s in %s", table.Name, s.region)
				Expect(report.Differs).To(BeEmpty(), "%s in %s", table.Name, s.region)
			}
		}
	}, SpecTimeout(time.Minute))

	It("bring each region's writes, and removals, to the others", func(ctx SpecContext) {
		for region, s := range w.sites {
			Expect(s.put(ctx, "gpu_instances", "at-"+region, "1")).To(Succeed())
		}
		for region := range w.sites {
			w.eventually(ctx, "gpu_instances", "at-"+region, "1")
		}
		Expect(w.sites[ohio].put(ctx, "gpu_instances", "at-"+east, "2")).To(Succeed())
		w.eventually(ctx, "gpu_instances", "at-"+east, "2")
		Expect(w.sites[oregon].remove(ctx, "gpu_instances", "at-"+east)).To(Succeed())
		w.eventually(ctx, "gpu_instances", "at-"+east, "")
		w.eventually(ctx, "gpu_instances", "at-"+ohio, "1")
	}, SpecTimeout(time.Minute))

	It("bring what batches and transactions write", func(ctx SpecContext) {
		item := keyOf("metrics", "batch")
		item["v"] = text("b")
		_, err := w.sites[ohio].client.BatchWriteItem(ctx, &sdk.BatchWriteItemInput{RequestItems: map[string][]types.WriteRequest{
			"metrics": {{PutRequest: &types.PutRequest{Item: item}}},
		}})
		Expect(err).NotTo(HaveOccurred())
		w.eventually(ctx, "metrics", "batch", "b")
		_, err = w.sites[east].client.TransactWriteItems(ctx, &sdk.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{
			{Delete: &types.Delete{TableName: aws.String("metrics"), Key: keyOf("metrics", "batch")}},
		}})
		Expect(err).NotTo(HaveOccurred())
		w.eventually(ctx, "metrics", "batch", "")
	}, SpecTimeout(time.Minute))

	It("lag for as long as is asked for, and keep the order", func(ctx SpecContext) {
		Expect(w.sites[east].put(ctx, "metrics", "lag", "0")).To(Succeed())
		w.eventually(ctx, "metrics", "lag", "0")
		w.sites[east].faults(globaltables.Faults{LagMS: 2000})
		began := time.Now()
		Expect(w.sites[east].put(ctx, "metrics", "lag", "1")).To(Succeed())
		Consistently(func() string { return w.sites[ohio].get(ctx, "metrics", "lag") }, "1s", "50ms").Should(Equal("0"))
		Expect(w.sites[east].put(ctx, "metrics", "lag", "2")).To(Succeed())
		Eventually(func() string { return w.sites[ohio].get(ctx, "metrics", "lag") }, "20s", "50ms").Should(Equal("1"))
		Expect(time.Since(began)).To(BeNumerically(">=", 2*time.Second))
		w.eventually(ctx, "metrics", "lag", "2")
	}, SpecTimeout(time.Minute))

	It("have the later of two regions' writes win everywhere when a cut is over, and removals, too", func(ctx SpecContext) {
		for _, key := range []string{"both", "removed", "revived"} {
			Expect(w.sites[east].put(ctx, "metrics", key, "0")).To(Succeed())
			w.eventually(ctx, "metrics", key, "0")
		}
		w.sites[east].faults(globaltables.Faults{Cut: []string{ohio, oregon}})
		Expect(w.sites[ohio].put(ctx, "metrics", "both", "ohio, earlier")).To(Succeed())
		Expect(w.sites[ohio].put(ctx, "metrics", "removed", "ohio, earlier")).To(Succeed())
		Expect(w.sites[ohio].remove(ctx, "metrics", "revived")).To(Succeed())
		Eventually(func() string { return w.sites[oregon].get(ctx, "metrics", "both") }, "20s", "50ms").Should(Equal("ohio, earlier"), "these two hear each other")
		Expect(w.sites[east].put(ctx, "metrics", "both", "east, later")).To(Succeed())
		Expect(w.sites[east].remove(ctx, "metrics", "removed")).To(Succeed())
		Expect(w.sites[east].put(ctx, "metrics", "revived", "east, later")).To(Succeed())
		Consistently(func() string { return w.sites[ohio].get(ctx, "metrics", "both") }, "1s", "50ms").Should(Equal("ohio, earlier"))
		w.sites[east].faults(globaltables.Faults{})
		w.eventually(ctx, "metrics", "both", "east, later")
		w.eventually(ctx, "metrics", "removed", "")
		w.eventually(ctx, "metrics", "revived", "east, later")
		Consistently(func() string { return w.sites[ohio].get(ctx, "metrics", "removed") }, "1s", "50ms").Should(BeEmpty())
	}, SpecTimeout(time.Minute))

	It("do not send on what was brought to them", func(ctx SpecContext) {
		w.sites[east].faults(globaltables.Faults{Cut: []string{oregon}})
		Expect(w.sites[east].put(ctx, "metrics", "direct", "1")).To(Succeed())
		Eventually(func() string { return w.sites[ohio].get(ctx, "metrics", "direct") }, "20s", "50ms").Should(Equal("1"))
		Consistently(func() string { return w.sites[oregon].get(ctx, "metrics", "direct") }, "2s", "50ms").Should(BeEmpty())
		w.sites[east].faults(globaltables.Faults{})
		w.eventually(ctx, "metrics", "direct", "1")
	}, SpecTimeout(time.Minute))

	It("do not let a write that was refused win over one that was made", func(ctx SpecContext) {
		Expect(w.sites[east].put(ctx, "metrics", "refused", "0")).To(Succeed())
		w.eventually(ctx, "metrics", "refused", "0")
		w.sites[east].faults(globaltables.Faults{Cut: []string{ohio, oregon}})
		Expect(w.sites[ohio].put(ctx, "metrics", "refused", "made")).To(Succeed())
		_, err := w.sites[east].client.DeleteItem(ctx, &sdk.DeleteItemInput{
			TableName: aws.String("metrics"), Key: keyOf("metrics", "refused"), ConditionExpression: aws.String("attribute_not_exists(v)"),
		})
		Expect(err).To(MatchError(ContainSubstring("ConditionalCheckFailed")))
		w.sites[east].faults(globaltables.Faults{})
		w.eventually(ctx, "metrics", "refused", "made")
	}, SpecTimeout(time.Minute))

	It("are the same everywhere at once where they are strongly consistent, conditions included, and without a majority neither read nor written", func(ctx SpecContext) {
		once := func(s *site) error {
			_, err := s.client.PutItem(ctx, &sdk.PutItemInput{
				TableName: aws.String("routing_state"), Item: keyOf("routing_state", "once"), ConditionExpression: aws.String("attribute_not_exists(id)"),
			})
			return err
		}
		Expect(once(w.sites[east])).To(Succeed())
		Expect(once(w.sites[oregon])).To(MatchError(ContainSubstring("ConditionalCheckFailed")))
		Expect(w.sites[east].put(ctx, "routing_state", "x", "1")).To(Succeed())
		Expect(w.sites[ohio].get(ctx, "routing_state", "x")).To(Equal("1"))

		w.sites[east].faults(globaltables.Faults{Cut: []string{ohio, oregon}})
		Eventually(func() error { return w.sites[east].put(ctx, "routing_state", "x", "2") }, "10s", "100ms").Should(
			MatchError(ContainSubstring("no majority")))
		Expect(w.sites[east].get(ctx, "routing_state", "x")).To(ContainSubstring("no majority"))
		Expect(w.sites[ohio].put(ctx, "routing_state", "x", "3")).To(Succeed(), "these two are a majority")
		Expect(w.sites[east].put(ctx, "metrics", "alone", "1")).To(Succeed(), "what is eventually consistent goes on")
		w.sites[east].faults(globaltables.Faults{})
		Eventually(func() string { return w.sites[east].get(ctx, "routing_state", "x") }, "10s", "100ms").Should(Equal("3"))
	}, SpecTimeout(time.Minute))

	It("go on after a region's DynamoDB Local and what is in front of it have died, with what was written", func(ctx SpecContext) {
		dead := w.sites[east]
		dead.faults(globaltables.Faults{Cut: []string{ohio, oregon}})
		Expect(dead.put(ctx, "metrics", "kept", "not yet told")).To(Succeed())
		Expect(w.sites[ohio].put(ctx, "metrics", "missed", "0")).To(Succeed())
		dead.local.Kill()
		dead.stop()
		dead.handler = http.NotFoundHandler()
		Expect(w.sites[ohio].put(ctx, "metrics", "missed", "1")).To(Succeed())
		Expect(w.sites[ohio].put(ctx, "routing_state", "without", "1")).To(Succeed(), "two of three are a majority")

		dead.local = startLocal(ctx, dynamodblocal.Config{Dir: dead.dir})
		w.start(dead)
		Eventually(func() error { return dead.list(ctx) }, "10s", "50ms").Should(Succeed())
		w.eventually(ctx, "metrics", "kept", "not yet told")
		w.eventually(ctx, "metrics", "missed", "1")
		Eventually(func() string { return dead.get(ctx, "routing_state", "without") }, "10s", "50ms").Should(Equal("1"))
	}, SpecTimeout(2*time.Minute))

	DescribeTable("refuse", func(ctx SpecContext, why string, do func(s *site) error) {
		Expect(do(w.sites[east])).To(MatchError(ContainSubstring(why)))
	},
		Entry("a request for another region", "not signed for /us-east-1/", func(s *site) error {
			wrong, err := dynamo.NewClient(context.Background(), awsclient.Settings{
				Region: ohio, Endpoint: s.front.URL, Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "secret", ""),
			})
			if err != nil {
				return err
			}
			defer wrong.Close()
			_, err = wrong.ListTables(context.Background(), &sdk.ListTablesInput{})
			return err
		}),
		Entry("PartiQL", "PartiQL", func(s *site) error {
			_, err := s.client.ExecuteStatement(context.Background(), &sdk.ExecuteStatementInput{Statement: aws.String("SELECT * FROM metrics")})
			return err
		}),
		Entry("strong consistency for a table that is not to have it", "not to have such replicas", func(s *site) error {
			_, err := s.client.UpdateTable(context.Background(), &sdk.UpdateTableInput{
				TableName: aws.String("metrics"), MultiRegionConsistency: types.MultiRegionConsistencyStrong,
				ReplicaUpdates: []types.ReplicationGroupUpdate{{Create: &types.CreateReplicationGroupMemberAction{RegionName: aws.String(ohio)}}},
			})
			return err
		}),
		Entry("both kinds of tables in one request", "strongly consistent and others", func(s *site) error {
			_, err := s.client.BatchGetItem(context.Background(), &sdk.BatchGetItemInput{RequestItems: map[string]types.KeysAndAttributes{
				"metrics":       {Keys: []map[string]types.AttributeValue{keyOf("metrics", "x")}},
				"routing_state": {Keys: []map[string]types.AttributeValue{keyOf("routing_state", "x")}},
			}})
			return err
		}),
	)
})
