// Package accelerator reads and sets the traffic dials of AWS Global Accelerator, for
// the routing loop:
//
//	a, err := accelerator.Open(ctx, accelerator.Config{Listener: arn, Regions: regions})
//	if err != nil { … }
//	defer a.Close()
//	dials, err := a.Dials(ctx)
//	err = a.SetDial(ctx, id, "use1", 0)
//
// A dial is the share of new connections that a region keeps of those that are nearest
// to it. Connections that are there stay; and when a region has no healthy endpoint,
// the accelerator ignores dials. What is read is what has been configured, which is in
// effect a little later ([Accelerator.Deployed]).
//
// The API is in us-west-2 for accelerators everywhere, and may be gone with it. Every
// call here ends within some seconds; after one that fails, what was set is not known,
// and has to be read.
//
// The AWS identity needs globalaccelerator:ListEndpointGroups, UpdateEndpointGroup and
// DescribeAccelerator.
package accelerator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"
	"github.com/aws/smithy-go"

	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
)

// homeRegion is where the API is (Global Accelerator API reference, "Welcome").
const homeRegion = "us-west-2"

// callTimeout bounds what one of the methods does, with all its tries. A decision must
// not wait for longer: package failover counts anew after a pause of 5 s.
const callTimeout = 3 * time.Second

// Config says which accelerator it is.
type Config struct {
	// Settings say as whom to ask, and where. Region is us-west-2 unless it is set.
	awsclient.Settings
	// Listener is the ARN of the accelerator's listener, which has an endpoint group in
	// each region. Required.
	Listener string
	// Regions are the cluster's, by AWS's names. Required.
	Regions map[string]fleet.Region
}

// listenerARN is the form of a listener's ARN (API reference, Listener).
var listenerARN = regexp.MustCompile(`^arn:aws[a-z-]*:globalaccelerator::[0-9]{12}:accelerator/[A-Za-z0-9-]+/listener/[A-Za-z0-9]+$`)

// Accelerator is one. It is safe for concurrent use.
type Accelerator struct {
	listener string
	regions  map[string]fleet.Region
	client   *sdk.Client
	loaded   *awsclient.Loaded
	log      *slog.Logger

	mu     sync.Mutex
	groups map[fleet.Region]string // guarded by mu: ARNs of endpoint groups, as they were listed last
	lacks  []fleet.Region          // guarded by mu: regions that had none
}

// Group is a region's endpoint group.
type Group struct {
	// Dial is in percent. One that is not whole, which people can set, is rounded so
	// that 0 and 100 are exact.
	Dial      int
	Endpoints int // in the group
	Healthy   int // of them, by the accelerator's own checks
}

// Open prepares to ask, without a request.
func Open(ctx context.Context, cfg Config) (*Accelerator, error) {
	if !listenerARN.MatchString(cfg.Listener) {
		return nil, fmt.Errorf("accelerator %q: want the ARN of its listener, arn:aws:globalaccelerator::ACCOUNT:accelerator/ID/listener/ID", cfg.Listener)
	}
	if len(cfg.Regions) == 0 {
		return nil, errors.New("accelerator: no regions")
	}
	if cfg.Region == "" {
		cfg.Region = homeRegion
	}
	loaded, err := awsclient.Load(ctx, cfg.Settings, "TransactionInProgressException")
	if err != nil {
		return nil, fmt.Errorf("accelerator: %w", err)
	}
	a := &Accelerator{
		listener: cfg.Listener, regions: cfg.Regions, client: sdk.NewFromConfig(loaded.Config), loaded: loaded, log: cfg.Logger,
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	return a, nil
}

// Close gives the connections back.
func (a *Accelerator) Close() { a.loaded.Close() }

// Dials gives the dials that are configured, in percent. A region that has no endpoint
// group is not among them.
func (a *Accelerator) Dials(ctx context.Context) (map[fleet.Region]int, error) {
	groups, err := a.Groups(ctx)
	if err != nil {
		return nil, err
	}
	dials := make(map[fleet.Region]int, len(groups))
	for region, group := range groups {
		dials[region] = group.Dial
	}
	return dials, nil
}

// Groups gives the endpoint groups of regions as they are configured.
func (a *Accelerator) Groups(ctx context.Context) (map[fleet.Region]Group, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.list(ctx)
}

func (a *Accelerator) list(ctx context.Context) (map[fleet.Region]Group, error) {
	groups, names := map[fleet.Region]Group{}, map[fleet.Region]string{}
	pages := sdk.NewListEndpointGroupsPaginator(a.client, &sdk.ListEndpointGroupsInput{ListenerArn: aws.String(a.listener)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("accelerator: list endpoint groups: %w", explain(err))
		}
		for _, g := range page.EndpointGroups {
			region, ours := a.regions[aws.ToString(g.EndpointGroupRegion)]
			if !ours {
				continue
			}
			group, err := read(g)
			if err != nil {
				return nil, fmt.Errorf("accelerator: endpoint group of %s: %w", region, err)
			}
			groups[region], names[region] = group, aws.ToString(g.EndpointGroupArn)
		}
	}
	a.remember(ctx, names)
	return groups, nil
}

// remember keeps the names of groups, and tells of regions that have none.
func (a *Accelerator) remember(ctx context.Context, names map[fleet.Region]string) {
	var lacks []fleet.Region
	for _, region := range slices.Sorted(maps.Values(a.regions)) {
		if names[region] == "" {
			lacks = append(lacks, region)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(lacks) > 0 && !slices.Equal(lacks, a.lacks) {
		a.log.WarnContext(ctx, "regions have no endpoint group at the accelerator: it sends nobody there", "regions", lacks, "listener", a.listener)
	}
	a.groups, a.lacks = names, lacks
}

func read(g types.EndpointGroup) (Group, error) {
	if g.TrafficDialPercentage == nil {
		return Group{}, errors.New("it says nothing of its dial")
	}
	dial, err := whole(float64(*g.TrafficDialPercentage))
	group := Group{Dial: dial, Endpoints: len(g.EndpointDescriptions)}
	for _, e := range g.EndpointDescriptions {
		if e.HealthState == types.HealthStateHealthy {
			group.Healthy++
		}
	}
	return group, err
}

// whole rounds percents so that 0 and 100 mean none and all.
func whole(percent float64) (int, error) {
	switch {
	case !(percent >= 0 && percent <= 100): // nor if it is no number
		return 0, fmt.Errorf("a dial of %v %%: want 0 to 100", percent)
	case percent == 0 || percent == 100:
		return int(percent), nil
	default:
		return min(max(int(math.Round(percent)), 1), 99), nil
	}
}

// SetDial sets a region's dial. The id is the action's, for the log. Setting a dial to
// what it is does no harm, so an action may be done twice.
func (a *Accelerator) SetDial(ctx context.Context, id string, region fleet.Region, percent int) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("accelerator: dial of %s to %d %%: want 0 to 100", region, percent)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	name, err := a.groupOf(ctx, region)
	if err != nil {
		return err
	}
	out, err := a.client.UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{
		EndpointGroupArn: aws.String(name), TrafficDialPercentage: aws.Float32(float32(percent)),
	})
	if err != nil {
		if gone := (*types.EndpointGroupNotFoundException)(nil); errors.As(err, &gone) {
			a.forget(region) // it may have been made anew
		}
		return fmt.Errorf("accelerator: dial of %s to %d %%: %w", region, percent, explain(err))
	}
	if is := out.EndpointGroup; is == nil || aws.ToFloat32(is.TrafficDialPercentage) != float32(percent) {
		return fmt.Errorf("accelerator: dial of %s to %d %%: it was taken, and is not so", region, percent)
	}
	a.log.InfoContext(ctx, "traffic dial is set", "action", id, "region", region, "percent", percent)
	return nil
}

// groupOf is the name of a region's endpoint group.
func (a *Accelerator) groupOf(ctx context.Context, region fleet.Region) (string, error) {
	a.mu.Lock()
	name := a.groups[region]
	a.mu.Unlock()
	if name != "" {
		return name, nil
	}
	if _, err := a.list(ctx); err != nil {
		return "", err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if name = a.groups[region]; name == "" {
		return "", fmt.Errorf("accelerator: %s has no endpoint group at %s: make one", region, a.listener)
	}
	return name, nil
}

func (a *Accelerator) forget(region fleet.Region) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.groups, region)
}

// Deployed says whether all that is configured is in effect.
func (a *Accelerator) Deployed(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	name, _, _ := strings.Cut(a.listener, "/listener/")
	out, err := a.client.DescribeAccelerator(ctx, &sdk.DescribeAcceleratorInput{AcceleratorArn: aws.String(name)})
	if err != nil {
		return false, fmt.Errorf("accelerator: describe: %w", explain(err))
	}
	return out.Accelerator != nil && out.Accelerator.Status == types.AcceleratorStatusDeployed, nil
}

// explain says what an error means where the SDK's own words do not.
func explain(err error) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return fmt.Errorf("no answer from the API, so what is set has to be read: %w", err)
	}
	switch code := api.ErrorCode(); code {
	case "ThrottlingException", "Throttling", "TooManyRequestsException", "TransactionInProgressException":
		return fmt.Errorf("the API is busy, try again: %w", err)
	case "AcceleratorNotFoundException", "ListenerNotFoundException", "EndpointGroupNotFoundException":
		return fmt.Errorf("it is not there; name the listener of this cluster's accelerator: %w", err)
	case "AccessDeniedException":
		return fmt.Errorf("allow globalaccelerator:ListEndpointGroups, UpdateEndpointGroup and DescribeAccelerator: %w", err)
	default:
		return err
	}
}
