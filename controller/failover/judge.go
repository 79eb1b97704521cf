package failover

import (
	"fmt"

	"github.com/mrgc/mrgc/internal/fleet"
)

// judgement is what all fresh views together say of a region.
type judgement struct {
	Verdict        // of a quorum; empty when there is none
	suspect bool   // at least one view sees it down or partial
	votes   string // for people
}

// serves says whether a region can carry traffic: one that is behind can.
func (j *judgement) serves() bool { return j.Verdict == Up || j.Verdict == Behind }

// tally counts views. Verdicts are ordered: who sees a region down also sees it
// partial, and who sees it up also that it serves, behind or not, so that a quorum of
// mixed views is of the milder one.
type tally struct{ down, partial, serves, up int }

func (t *tally) count(v Verdict) {
	switch v {
	case Down:
		t.down++
		t.partial++
	case Partial:
		t.partial++
	case Behind:
		t.serves++
	case Up:
		t.serves++
		t.up++
	}
}

// judge counts fresh views.
func (c *Config) judge(views map[fleet.Region]View, region fleet.Region) judgement {
	var total, others tally
	fresh := 0
	for _, from := range c.Regions {
		view := views[from]
		verdict := view.Of[region]
		if view.Freshness != Fresh || verdict == "" {
			continue
		}
		fresh++
		total.count(verdict)
		if from != region {
			others.count(verdict)
		}
	}
	j := judgement{
		suspect: total.partial > 0,
		votes: fmt.Sprintf("seen down by %d, partial by %d, behind by %d, up by %d of %d regions, %d fresh views",
			total.down, total.partial-total.down, total.serves-total.up, total.up, len(c.Regions), fresh),
	}
	switch quorum := c.quorum(); {
	case len(c.Regions) < 3: // a death and a partition look alike
	case total.down >= quorum && others.down > 0:
		j.Verdict = Down
	case total.partial >= quorum && others.partial > 0:
		j.Verdict = Partial
	case total.up >= quorum && others.up > 0 && total.down == 0:
		j.Verdict = Up
	case total.serves >= quorum && others.serves > 0 && total.down == 0:
		j.Verdict = Behind
	}
	return j
}

// judgeAll judges every region. When all look down, or half gone, the looking
// failed: a bug in the probe, or the path to the store. Then none is judged.
func (c *Config) judgeAll(views map[fleet.Region]View) map[fleet.Region]judgement {
	all := make(map[fleet.Region]judgement, len(c.Regions))
	bad := 0
	for _, region := range c.Regions {
		j := c.judge(views, region)
		all[region] = j
		if j.Verdict == Down || j.Verdict == Partial {
			bad++
		}
	}
	if bad == len(c.Regions) {
		for region, j := range all {
			j.Verdict, j.votes = "", "every region looks down, so the looking is at fault: "+j.votes
			all[region] = j
		}
	}
	return all
}
