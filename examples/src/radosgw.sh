#!/bin/bash
# A Ceph of one monitor, one OSD in memory and one gateway, all on 127.0.0.1: FOLDER, ports in MONP2 MONP1 RGWP.
# The gateway is started by the caller, which may kill and start it again.
set -e
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT INT TERM
D=${1:?folder}; rm -rf $D/{mon,osd,rgw,run,*.keyring,monmap}; mkdir -p $D/{mon,osd,rgw,run}; cd $D
FSID=$(cat /proc/sys/kernel/random/uuid); export CEPH_CONF=$D/ceph.conf
OUUID=$(cat /proc/sys/kernel/random/uuid)
cat > ceph.conf <<C
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:${MONP2:-13300},v1:127.0.0.1:${MONP1:-16789}]
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
run dir = $D/run
keyring = $D/admin.keyring
admin socket = $D/run/\$name.\$pid.asok
mon data avail warn = 1
mon data avail crit = 0
log file = $D/run/\$name.log
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
mon warn on pool no redundancy = false
mon allow pool delete = true
ms bind ipv6 = false
[mon.a]
keyring = $D/mon.keyring
mon data = $D/mon
[osd.0]
keyring = $D/osd/keyring
osd data = $D/osd
osd objectstore = memstore
memstore device bytes = 4294967296
public addr = 127.0.0.1
cluster addr = 127.0.0.1
[client.rgw.a]
keyring = $D/rgw.keyring
rgw frontends = beast endpoint=127.0.0.1:${RGWP:-15040} tcp_nodelay=1
rgw thread pool size = 64
rgw multipart min part size = ${MINPART:-5242880}
rgw crypt require ssl = false
rgw enable usage log = false
rgw gc obj min wait = 60
C
ceph-authtool -C mon.keyring -g -n mon. --cap mon 'allow *' >/dev/null; ceph-authtool -C admin.keyring -g -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null; ceph-authtool mon.keyring --import-keyring admin.keyring >/dev/null
monmaptool --create --clobber --fsid $FSID --addv a "[v2:127.0.0.1:${MONP2:-13300},v1:127.0.0.1:${MONP1:-16789}]" monmap >/dev/null
ceph-mon -i a --mkfs --monmap monmap -c ceph.conf --mon-data mon --keyring mon.keyring
ceph-mon -i a -c ceph.conf -f --setuser root --setgroup root & 
for i in $(seq 100); do ceph -c ceph.conf --connect-timeout 2 osd new $OUUID >/dev/null 2>&1 && break; sleep .1; done
ceph -c ceph.conf auth get-or-create osd.0 mon 'allow profile osd' osd 'allow *' > osd/keyring
ceph -c ceph.conf auth get-or-create client.rgw.a mon 'allow rw' osd 'allow rwx' > rgw.keyring
ceph-osd -i 0 -c ceph.conf --mkfs --osd-data osd --osd-objectstore memstore --osd-uuid $OUUID 2>/dev/null || true
ceph-osd -i 0 -c ceph.conf -f --setuser root --setgroup root &
touch ready
wait
