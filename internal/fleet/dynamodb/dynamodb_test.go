package dynamodb_test

import (
	"context"
	"log/slog"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb"
	"github.com/mrgc/mrgc/internal/fleet/storetest"
)

var _ = storetest.Describe("dynamodb", func() storetest.Open {
	cfg := createTable(context.Background())
	return func(ctx context.Context, clock func() time.Time) (fleet.Store, error) {
		cfg.Clock = clock
		return dynamodb.Open(ctx, cfg)
	}
})

var _ = Describe("The table", func() {
	It("is named, with what to do, when it is not there", func(ctx SpecContext) {
		cfg := newTable()
		store := open(ctx, cfg)
		want := MatchError(And(ContainSubstring("DynamoDB table "+cfg.Table), ContainSubstring("check its name and the region")))
		Expect(store.Register(ctx, instance("a"))).To(want)
		_, err := store.Snapshot(ctx)
		Expect(err).To(want)
	})
})

var _ = Describe("An item", func() {
	It("has typed attributes with the units in their names", func(ctx SpecContext) {
		cfg := createTable(ctx)
		cfg.Clock = func() time.Time { return time.Unix(1, 5) }
		in := fleet.Instance{
			ID: "a", Region: "use1", Zone: "use1-az1", Address: "127.0.0.1:8080", Models: []string{"m"},
			Versions: map[string]string{"m": "v2"}, KeyIDs: []string{"00112233445566aa"}, Health: fleet.Health{Engine: true, Reason: "why"},
			Load:  fleet.Load{Running: 1, Queued: 2, Slots: 3, Latency: time.Millisecond, Requests: 4},
			Usage: map[string]fleet.Usage{"m": {Requests: 4, Ended: 3, Late: 1, Answers: 2, PromptTokens: 192, OutputTokens: 256}},
		}
		Expect(open(ctx, cfg).Register(ctx, in)).To(Succeed())
		got, err := client(cfg).GetItem(ctx, &sdk.GetItemInput{TableName: &cfg.Table, Key: map[string]types.AttributeValue{"instance_id": s("a")}})
		Expect(err).NotTo(HaveOccurred())
		Expect(got.Item).To(Equal(map[string]types.AttributeValue{
			"instance_id": s("a"), "region": s("use1"), "zone": s("use1-az1"), "address": s("127.0.0.1:8080"),
			"models": list(s("m")), "versions": &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{"m": s("v2")}}, "key_ids": list(s("00112233445566aa")), "draining": yes(false),
			"enclave_ok": yes(false), "engine_ok": yes(true), "health_reason": s("why"),
			"running_requests": n("1"), "queued_requests": n("2"), "slots": n("3"), "latency_ns": n("1000000"), "requests": n("4"),
			"usage": &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{"m": &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{
				"requests": n("4"), "ended": n("3"), "late": n("1"), "answers": n("2"), "prompt_tokens": n("192"), "output_tokens": n("256"),
			}}}},
			"registered_at_unix_ns": n("1000000005"), "heartbeat_at_unix_ns": n("1000000005"), "version": n("1"),
			"expires_at_unix_s": n("86401"), // a day after the last heartbeat
		}))
	})

	It("may lack the versions, as one of before there were any does", func(ctx SpecContext) {
		cfg := createTable(ctx)
		store := open(ctx, cfg)
		Expect(store.Register(ctx, instance("a"))).To(Succeed())
		change(ctx, cfg, "a", "versions", nil)
		Expect(storetest.Instances(ctx, store)).To(HaveExactElements(HaveField("Versions", BeEmpty())))
	})

	It("may lack the requests, as one of before they were counted does", func(ctx SpecContext) {
		cfg := createTable(ctx)
		store := open(ctx, cfg)
		in := instance("a")
		in.Load.Requests = 9
		Expect(store.Register(ctx, in)).To(Succeed())
		change(ctx, cfg, "a", "requests", nil)
		Expect(storetest.Instances(ctx, store)).To(HaveExactElements(HaveField("Load.Requests", BeZero())))
	})

	It("may lack what was used of models, which is then not known", func(ctx SpecContext) {
		cfg := createTable(ctx)
		store := open(ctx, cfg)
		in := instance("a")
		in.Usage = map[string]fleet.Usage{}
		Expect(store.Register(ctx, in)).To(Succeed())
		Expect(storetest.Instances(ctx, store)).To(HaveExactElements(HaveField("Usage", Not(BeNil()))))
		change(ctx, cfg, "a", "usage", nil)
		Expect(storetest.Instances(ctx, store)).To(HaveExactElements(HaveField("Usage", BeNil())))
	})

	It("may have attributes that this version does not know, and keeps them", func(ctx SpecContext) {
		cfg := createTable(ctx)
		store := open(ctx, cfg)
		Expect(store.Register(ctx, instance("a"))).To(Succeed())
		change(ctx, cfg, "a", "of_the_future", s("kept"))
		Expect(store.Register(ctx, instance("a"))).To(Succeed())
		Expect(storetest.Instances(ctx, store)).To(HaveLen(1))
		got, err := client(cfg).GetItem(ctx, &sdk.GetItemInput{TableName: &cfg.Table, Key: map[string]types.AttributeValue{"instance_id": s("a")}})
		Expect(err).NotTo(HaveOccurred())
		Expect(got.Item).To(HaveKeyWithValue("of_the_future", s("kept")))
	})

	DescribeTable("that is no instance is skipped: with",
		func(ctx SpecContext, name string, value types.AttributeValue, why string) {
			log := gbytes.NewBuffer()
			cfg := createTable(ctx)
			cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
			store := open(ctx, cfg)
			Expect(store.Register(ctx, instance("bad"))).To(Succeed())
			Expect(store.Register(ctx, instance("good"))).To(Succeed())
			snapshots := storetest.Watch(ctx, store)
			Eventually(snapshots).Should(Receive(HaveField("Instances", HaveLen(2))))
			Expect(log.Contents()).To(BeEmpty())

			change(ctx, cfg, "bad", name, value)
			Eventually(snapshots).Should(Receive(HaveField("Instances", ConsistOf(HaveField("ID", "good")))))
			Eventually(log).Should(gbytes.Say(`no instance, skipped" table=%s item=bad error=.*%s`, cfg.Table, why))
			Expect(store.Heartbeat(ctx, fleet.Heartbeat{ID: "good"})).To(Succeed())
			Eventually(snapshots).Should(Receive(HaveField("Instances", ConsistOf(HaveField("Version", int64(2))))))
			Expect(storetest.Instances(ctx, store)).To(HaveLen(1))
			Expect(log).NotTo(gbytes.Say("skipped"), "it was said once")

			Expect(store.Deregister(ctx, "bad")).To(Succeed())
			Expect(store.Register(ctx, instance("bad"))).To(Succeed())
			Eventually(snapshots).Should(Receive(HaveField("Instances", HaveLen(2))))
		},
		Entry("an attribute missing", "address", nil, "attribute address: want a string"),
		Entry("a number for text", "region", n("1"), "attribute region: want a string"),
		Entry("text for a number", "version", s("1"), "attribute version: want a whole number"),
		Entry("a fraction", "running_requests", n("0.5"), "attribute running_requests: want a whole number"),
		Entry("a number that is too large", "latency_ns", n("9223372036854775808"), "attribute latency_ns: want a whole number of 64 bits"),
		Entry("text for a boolean", "draining", s("false"), "attribute draining: want a boolean"),
		Entry("a set for a list", "models", &types.AttributeValueMemberSS{Value: []string{"m"}}, "attribute models: want a list of strings"),
		Entry("a list of numbers", "key_ids", list(n("1")), "attribute key_ids: want a list of strings"),
		Entry("a list for a map", "versions", list(s("v2")), "attribute versions: want a map of strings"),
		Entry("a map of numbers", "versions", &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{"m": n("2")}}, "attribute versions: want a map of strings"),
		Entry("usage that is no map", "usage", n("1"), "attribute usage: want a map of maps of numbers"),
		Entry("usage of a number", "usage", &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{"m": n("2")}}, "attribute usage: want a map of maps of numbers"),
		Entry("usage of half", "usage", &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{
			"m": &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{"requests": n("2")}},
		}}, "attribute usage: m: attribute ended: want a whole number"),
		Entry("what no instance may register", "address", s("parent.example:80"), "want IP:port"),
	)
})

// client is for what a store does not do.
func client(cfg dynamodb.Config) *sdk.Client {
	return sdk.New(sdk.Options{Region: cfg.Region, BaseEndpoint: aws.String(cfg.Endpoint), Credentials: cfg.Credentials})
}

// change sets an attribute behind the store's back, or removes it.
func change(ctx context.Context, cfg dynamodb.Config, id, name string, value types.AttributeValue) {
	GinkgoHelper()
	input := &sdk.UpdateItemInput{
		TableName: &cfg.Table, Key: map[string]types.AttributeValue{"instance_id": s(id)},
		ExpressionAttributeNames: map[string]string{"#n": name},
		UpdateExpression:         aws.String("REMOVE #n"),
	}
	if value != nil {
		input.UpdateExpression = aws.String("SET #n = :v")
		input.ExpressionAttributeValues = map[string]types.AttributeValue{":v": value}
	}
	_, err := client(cfg).UpdateItem(ctx, input)
	Expect(err).NotTo(HaveOccurred())
}

func s(value string) types.AttributeValue { return &types.AttributeValueMemberS{Value: value} }
func n(value string) types.AttributeValue { return &types.AttributeValueMemberN{Value: value} }
func yes(value bool) types.AttributeValue { return &types.AttributeValueMemberBOOL{Value: value} }

func list(values ...types.AttributeValue) types.AttributeValue {
	return &types.AttributeValueMemberL{Value: values}
}
