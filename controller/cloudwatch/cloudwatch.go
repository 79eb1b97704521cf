// Package cloudwatch publishes what a region does by the minute as CloudWatch
// metrics, for alarms:
//
//	p, err := cloudwatch.Open(ctx, cloudwatch.Config{Namespace: "MRGC"})
//	if err != nil { … }
//	defer p.Close()
//	err = p.Publish(ctx, "use1", minutes)
//
// Each has the dimension Region; ReplicationLag has From, too, the region whose
// rows lag. A region without a leading controller publishes nothing: an alarm that
// takes missing data for a breach notices.
//
// The AWS identity needs cloudwatch:PutMetricData for the namespace.
package cloudwatch

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	// A version before 1.53, which speak another protocol, that no emulator knows.
	sdk "github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
)

// Config says where metrics go.
type Config struct {
	awsclient.Settings
	// Namespace of the metrics. Required; AWS's own, "AWS/…", are refused.
	Namespace string
}

// Publisher publishes metrics.
type Publisher struct {
	namespace string
	client    *sdk.Client
	loaded    *awsclient.Loaded
}

// namespace is CloudWatch's rule (API reference, PutMetricData, Namespace), without
// those that begin with AWS/.
var namespace = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/#:-]{0,254}$`)

// Open prepares to publish, without a request.
func Open(ctx context.Context, cfg Config) (*Publisher, error) {
	if !namespace.MatchString(cfg.Namespace) || len(cfg.Namespace) >= 4 && cfg.Namespace[:4] == "AWS/" {
		return nil, fmt.Errorf("CloudWatch namespace %q: want 1 to 255 of a-z, A-Z, 0-9 and ._/#:-, not beginning with AWS/", cfg.Namespace)
	}
	loaded, err := awsclient.Load(ctx, cfg.Settings)
	if err != nil {
		return nil, fmt.Errorf("CloudWatch: %w", err)
	}
	return &Publisher{namespace: cfg.Namespace, client: sdk.NewFromConfig(loaded.Config), loaded: loaded}, nil
}

// Close gives the connections back.
func (p *Publisher) Close() { p.loaded.Close() }

// mostMetrics is how many one call takes (API reference, PutMetricData).
const mostMetrics = 1000

// Publish publishes minutes of a region. After an error some may be published, and
// it may be done again: CloudWatch then counts those twice, which changes no mean
// and no maximum.
func (p *Publisher) Publish(ctx context.Context, region fleet.Region, minutes []state.Record[state.Minute]) error {
	var all []types.MetricDatum
	for _, minute := range minutes {
		at, err := state.MinuteAt(minute.Key)
		if err != nil {
			return fmt.Errorf("CloudWatch: %w", err)
		}
		all = append(all, metrics(region, at, minute.Value)...)
	}
	for chunk := range slices.Chunk(all, mostMetrics) {
		if _, err := p.client.PutMetricData(ctx, &sdk.PutMetricDataInput{Namespace: aws.String(p.namespace), MetricData: chunk}); err != nil {
			return fmt.Errorf("CloudWatch namespace %s: %w", p.namespace, err)
		}
	}
	return nil
}

func metrics(region fleet.Region, at time.Time, m state.Minute) []types.MetricDatum {
	of := []types.Dimension{{Name: aws.String("Region"), Value: aws.String(string(region))}}
	var all []types.MetricDatum
	for _, count := range []struct {
		name  string
		value float64
	}{
		{"Instances", m.Instances},
		{"InstancesReady", m.Ready},
		{"InstancesDraining", m.Draining},
		{"RequestsRunning", m.Running},
		{"RequestsQueued", m.Queued},
		{"Slots", m.Slots},
	} {
		all = append(all, types.MetricDatum{
			MetricName: aws.String(count.name), Value: aws.Float64(count.value), Unit: types.StandardUnitCount,
			Timestamp: aws.Time(at), Dimensions: of,
		})
	}
	for _, from := range slices.Sorted(maps.Keys(m.Lag)) {
		all = append(all, types.MetricDatum{
			MetricName: aws.String("ReplicationLag"), Value: aws.Float64(m.Lag[from]), Unit: types.StandardUnitSeconds,
			Timestamp: aws.Time(at), Dimensions: append(slices.Clone(of), types.Dimension{Name: aws.String("From"), Value: aws.String(string(from))}),
		})
	}
	return all
}
