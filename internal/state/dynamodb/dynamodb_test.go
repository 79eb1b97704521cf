package dynamodb_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/dynamodb"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/internal/state/statetest"
)

func TestDynamoDB(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/state/dynamodb")
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
}, NodeTimeout(time.Minute))

var prefixes atomic.Int64

// tables makes tables of the spec's own.
func tables(ctx context.Context) dynamodb.Config {
	GinkgoHelper()
	if missing := dynamodblocal.Missing(); missing != "" {
		Skip(missing)
	}
	cfg := config(shared.Endpoint())
	cfg.Prefix = fmt.Sprintf("t%d-", prefixes.Add(1))
	client, err := dynamo.NewClient(ctx, cfg.Settings)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(client.Close)
	for _, table := range schema.Tables(cfg.Prefix)[1:] {
		table.Regions = nil
		_, err := client.Ensure(ctx, table)
		Expect(err).NotTo(HaveOccurred())
	}
	return cfg
}

func config(endpoint string) dynamodb.Config {
	return dynamodb.Config{Settings: awsclient.Settings{
		Region: "us-east-1", Endpoint: endpoint, Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	}}
}

func open(ctx context.Context, cfg dynamodb.Config) *dynamodb.Store {
	GinkgoHelper()
	store, err := dynamodb.Open(ctx, cfg)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(store.Close)
	return store
}

var _ = statetest.Describe("dynamodb", func() statetest.Open {
	cfg := tables(context.Background())
	return func(ctx context.Context) (state.Store, error) { return dynamodb.Open(ctx, cfg) }
})

var use1 = state.Key{Partition: "use1"}

func write(fields string) state.Write {
	return state.Write{Key: use1, Fields: json.RawMessage(fields)}
}

var _ = Describe("A write whose answer is lost", func() {
	It("is made once, and knows its version when it is sent again", func(ctx SpecContext) {
		cfg := tables(ctx)
		lossy := between(cfg.Endpoint, func(n int64) bool { return n == 2 })
		cfg.Endpoint = lossy.url
		store := open(ctx, cfg)
		Expect(store.Write(ctx, schema.RoutingState, write(`{"n":1}`))).To(Equal(int64(1)))
		second := write(`{"n":2}`)
		second.Version, second.Fence = 1, 4
		Expect(store.Write(ctx, schema.RoutingState, second)).To(Equal(int64(2)))
		Expect(lossy.requests.Load()).To(Equal(int64(3)))
		item, err := store.Get(ctx, schema.RoutingState, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Version).To(Equal(int64(2)))
		Expect(item.Fields).To(MatchJSON(`{"n":2}`))
	})

	It("and is then written over by another is refused when it is sent again", func(ctx SpecContext) {
		cfg := tables(ctx)
		other := open(ctx, cfg)
		lossy := between(cfg.Endpoint, func(n int64) bool {
			defer GinkgoRecover()
			if n == 1 {
				over := write(`{"n":7}`)
				over.Version = 1
				_, err := other.Write(ctx, schema.RoutingState, over)
				Expect(err).NotTo(HaveOccurred())
			}
			return n == 1
		})
		cfg.Endpoint = lossy.url
		_, err := open(ctx, cfg).Write(ctx, schema.RoutingState, write(`{"n":1}`))
		Expect(err).To(MatchError(state.ErrConflict))
	})
})

// proxy passes requests on, and drops some answers.
type proxy struct {
	url      string
	requests atomic.Int64
}

// between drops the answers, after they were made, to the requests that lose
// picks by their number.
func between(endpoint string, lose func(int64) bool) *proxy {
	GinkgoHelper()
	target, err := url.Parse(endpoint)
	Expect(err).NotTo(HaveOccurred())
	p := &proxy{}
	forward := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		number := p.requests.Add(1)
		answer := httptest.NewRecorder()
		forward.ServeHTTP(answer, r)
		if lose(number) {
			panic(http.ErrAbortHandler)
		}
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}))
	DeferCleanup(server.Close)
	p.url = server.URL
	return p
}

var _ = Describe("A batch that DynamoDB does in part", func() {
	// half does the first half, and leaves the rest, at most so many times.
	half := func(times int64) (*atomic.Int64, dynamodb.Config) {
		return serve(func(number int64, operation string, body map[string]any) string {
			requests := body["RequestItems"].(map[string]any)["metrics"]
			switch operation {
			case "BatchWriteItem":
				list := requests.([]any)
				if number > times {
					return `{"UnprocessedItems":{}}`
				}
				return fmt.Sprintf(`{"UnprocessedItems":{"metrics":%s}}`, text(list[len(list)/2:]))
			default:
				list := requests.(map[string]any)["Keys"].([]any)
				done, left := list, []any{}
				if number <= times {
					done, left = list[:len(list)/2], list[len(list)/2:]
				}
				if len(left) == 0 {
					return fmt.Sprintf(`{"Responses":{"metrics":%s},"UnprocessedKeys":{}}`, text(done))
				}
				return fmt.Sprintf(`{"Responses":{"metrics":%s},"UnprocessedKeys":{"metrics":{"Keys":%s}}}`, text(done), text(left))
			}
		})
	}
	keys := func(count int) (keys []state.Key, writes []state.Write) {
		for i := range count {
			key := state.Key{Partition: "minute/use1", Sort: strconv.Itoa(100 + i)}
			keys = append(keys, key)
			writes = append(writes, state.Write{Key: key, Fields: json.RawMessage(`{}`)})
		}
		return keys, writes
	}

	It("is done by and by", func(ctx SpecContext) {
		all, writes := keys(8)
		requests, cfg := half(3)
		items, err := open(ctx, cfg).GetMany(ctx, schema.Metrics, all)
		Expect(err).NotTo(HaveOccurred())
		Expect(items).To(HaveLen(8))
		Expect(requests.Load()).To(Equal(int64(4)))
		requests, cfg = half(3)
		Expect(open(ctx, cfg).Replace(ctx, schema.Metrics, writes)).To(Succeed())
		Expect(requests.Load()).To(Equal(int64(4)))
	})

	It("is an error when it is not done in the end", func(ctx SpecContext) {
		all, writes := keys(8)
		requests, cfg := half(1000)
		_, err := open(ctx, cfg).GetMany(ctx, schema.Metrics, all)
		Expect(err).To(MatchError(And(ContainSubstring("throttled"), ContainSubstring("left undone after 6 tries"))))
		Expect(requests.Load()).To(Equal(int64(6)))
		Expect(open(ctx, cfg).Replace(ctx, schema.Metrics, writes)).To(MatchError(ContainSubstring("left undone")))
	})

	It("waits no longer than its context", func(ctx SpecContext) {
		all, _ := keys(8)
		short, cancel := context.WithCancel(ctx)
		requests, cfg := serve(func(_ int64, _ string, body map[string]any) string {
			cancel()
			return fmt.Sprintf(`{"Responses":{},"UnprocessedKeys":%s}`, text(body["RequestItems"]))
		})
		_, err := open(ctx, cfg).GetMany(short, schema.Metrics, all)
		Expect(err).To(MatchError(context.Canceled))
		Expect(requests.Load()).To(Equal(int64(1)))
	})
})

var _ = Describe("A call", func() {
	It("is tried again when it meets another region's write, and thrice at most", func(ctx SpecContext) {
		requests, cfg := serve(func(int64, string, map[string]any) string { return "!ReplicatedWriteConflictException" })
		_, err := open(ctx, cfg).Write(ctx, schema.RoutingState, write(`{}`))
		Expect(err).To(MatchError(And(ContainSubstring("DynamoDB table routing_state: write use1"), ContainSubstring("ReplicatedWriteConflict"))))
		Expect(requests.Load()).To(Equal(int64(3)))
	})

	It("goes on where a page ended", func(ctx SpecContext) {
		requests, cfg := serve(func(number int64, _ string, body map[string]any) string {
			if number == 1 {
				return `{"Items":[{"series":{"S":"s"},"at":{"S":"1"}}],"LastEvaluatedKey":{"series":{"S":"s"},"at":{"S":"1"}}}`
			}
			Expect(body).To(HaveKey("ExclusiveStartKey"))
			return `{"Items":[{"series":{"S":"s"},"at":{"S":"2"}}]}`
		})
		items, err := open(ctx, cfg).List(ctx, schema.Metrics, state.Query{Partition: "s"})
		Expect(err).NotTo(HaveOccurred())
		Expect(items).To(HaveExactElements(HaveField("Key.Sort", "1"), HaveField("Key.Sort", "2")))
		Expect(requests.Load()).To(Equal(int64(2)))
	})

	It("reads what other people's programs write, and says what it cannot", func(ctx SpecContext) {
		value := `{"SS":["a"]}`
		_, cfg := serve(func(int64, string, map[string]any) string {
			return `{"Item":{"id":{"S":"use1"},"hold":` + value + `}}`
		})
		_, err := open(ctx, cfg).Get(ctx, schema.RoutingState, use1)
		Expect(err).To(MatchError(ContainSubstring("item use1: attribute hold: want a string, number, boolean, list or map")))
		value = `{"S":"me"}`
		item, err := open(ctx, cfg).Get(ctx, schema.RoutingState, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(item.Version).To(BeZero(), "a row that was written by hand from the start")
		Expect(item.Fields).To(MatchJSON(`{"hold":"me"}`))
	})
})

var _ = Describe("Regions of an emulator", func() {
	It("share the strongly consistent tables, and not the others", func(ctx SpecContext) {
		east := tables(ctx)
		west := east
		west.Region, west.StrongRegion = "us-west-2", "us-east-1"
		client, err := dynamo.NewClient(ctx, west.Settings)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(client.Close)
		metrics := schema.Metrics
		metrics.Name, metrics.Regions = west.Prefix+metrics.Name, nil
		_, err = client.Ensure(ctx, metrics)
		Expect(err).NotTo(HaveOccurred())

		one, other := open(ctx, east), open(ctx, west)
		_, err = one.Write(ctx, schema.RoutingState, write(`{}`))
		Expect(err).NotTo(HaveOccurred())
		_, err = other.Get(ctx, schema.RoutingState, use1)
		Expect(err).NotTo(HaveOccurred())
		row := state.Write{Key: state.Key{Partition: "a", Sort: "b"}, Fields: json.RawMessage(`{}`)}
		Expect(one.Replace(ctx, schema.Metrics, []state.Write{row})).To(Succeed())
		_, err = other.Get(ctx, schema.Metrics, row.Key)
		Expect(err).To(MatchError(state.ErrNotFound))
	})
})

var _ = Describe("Opening", func() {
	It("refuses a prefix that no table may have", func(ctx SpecContext) {
		cfg := config("http://127.0.0.1:1")
		cfg.Prefix = "a/"
		_, err := dynamodb.Open(ctx, cfg)
		Expect(err).To(MatchError(ContainSubstring(`table "a/gpu_instances"`)))
	})
})

// serve answers in the place of DynamoDB; an answer that begins with ! is an
// error's name.
func serve(handle func(number int64, operation string, body map[string]any) string) (*atomic.Int64, dynamodb.Config) {
	requests := &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer GinkgoRecover()
		raw, _ := io.ReadAll(r.Body)
		var body map[string]any
		Expect(json.NewDecoder(bytes.NewReader(raw)).Decode(&body)).To(Succeed())
		_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		answer, status := handle(requests.Add(1), operation, body), http.StatusOK
		if name, is := strings.CutPrefix(answer, "!"); is {
			answer, status = `{"__type":"com.amazonaws.dynamodb.v20120810#`+name+`","message":"not now"}`, http.StatusBadRequest
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE([]byte(answer))), 10))
		w.WriteHeader(status)
		_, _ = w.Write([]byte(answer))
	}))
	DeferCleanup(server.Close)
	return requests, config(server.URL)
}

func text(of any) string {
	encoded, err := json.Marshal(of)
	Expect(err).NotTo(HaveOccurred())
	return string(encoded)
}
